"""Publisher: a new span's file and its row in the index, both or none."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ..span import Head, NewSpan, path_digest
from . import content, sweep
from .index_rows import MOST_LABEL
from .unpublished import NotPublished

if TYPE_CHECKING:
    from .faults import Faults
    from .folder import StoreFolder
    from .index import Index
    from .notes import Notes
    from .shared_index import SharedIndex
    from .span_file import UnpublishedSpan
    from .upkeep import Upkeep
    from .witness import Witness


class Publisher:
    """Adds spans to a folder that other processes add to as well."""

    def __init__(
        self,
        folder: StoreFolder,
        index: SharedIndex,
        notes: Notes,
        witness: Witness,
        upkeep: Upkeep,
        faults: Faults,
    ) -> None:
        self._folder = folder
        self._index = index
        self._notes = notes
        self._witness = witness
        self._upkeep = upkeep
        self._faults = faults
        self.written = 0  # bytes, in all

    def publish(self, span: NewSpan) -> bool:
        """Store a span; False if it can't be, or is there, or its parent was evicted."""
        parent = self._index.run(lambda index: self._parent(index, span), None)
        # A span larger than the budget would push out all the rest for nothing (law 10).
        if parent is None or span.nbytes > self._upkeep.most:
            return False
        head = self._head(span, parent)
        folder, files = self._folder.spans, self._folder.files
        try:
            with content.unpublished(folder, head, span.tensors, files) as file:
                added = self._index.run(lambda index: self._add(index, file, head), otherwise=False)
        except FileNotFoundError:  # cleared by another process in the meantime
            return False
        except OSError as error:
            self._faults.unwritable(error)
            return False
        except NotPublished as error:
            if error.why.errno != errno.ENOENT:
                self._faults.unwritable(error.why)
            return False
        self._faults.written()
        if added:
            self._entered(span, file, head)
        return added  # not where another process stored the same meanwhile, or evicted the parent

    def _parent(self, index: Index, span: NewSpan) -> str | None:
        """The file id of the parent under which a span can be stored; None if it can't be."""
        layout = index.namespaces.layout(span.namespace)
        if layout not in (None, content.layout_to_text(span.layout)):
            self._witness.refute_layout(index, span.namespace)
        found = index.walk(span.namespace, span.path)
        if span.start == len(span.path):
            known = [c for c in found.checkpoints if c.end == span.start]
            return None if found.end < span.start or known else found.spans[-1].file_id
        if found.end != span.start:
            return None
        return found.spans[-1].file_id if found.spans else ""

    def _head(self, span: NewSpan, parent: str) -> Head:
        return Head(
            namespace=span.namespace,
            parent=parent,
            start=span.start,
            tier=span.tier,
            layout=span.layout,
            tokens=span.path[span.start :],
            resumes=span.resumes,
            label=self._notes.of(span.namespace).label[:MOST_LABEL],
        )

    def _add(self, index: Index, file: UnpublishedSpan, head: Head) -> bool:
        """Enter a span and publish its file at once: any writer of the index sees both or none.

        False if one is there or its parent was evicted meanwhile.
        """
        row = sweep.row_of(file.file_id, head, file.size, self._folder)
        try:
            with index.transaction():
                _, label, identity = self._notes.of(head.namespace)
                if not index.add(row, content.layout_to_text(head.layout), label, identity):
                    return False
                try:
                    file.publish()
                except OSError as error:
                    raise NotPublished(error) from None
        except BaseException:
            file.withdraw()
            raise
        return True

    def _entered(self, span: NewSpan, file: UnpublishedSpan, head: Head) -> None:
        """Count a span that is stored now, and evict for it what has to go."""
        self.written += file.size
        row = sweep.row_of(file.file_id, head, file.size, self._folder)
        # A checkpoint stands where a span ends, and is another one.
        where = span.namespace, span.start == len(span.path)
        self._upkeep.entered(row, path_digest(where, span.path))
        self._upkeep.keep_budget()
        self._upkeep.tidy()
