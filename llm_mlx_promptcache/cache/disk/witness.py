"""Witness: what a span's file says of its row, and who is believed where they differ.

The index is untrusted, and its digest is no secret. A file that is whole decides: where its head
disagrees with a row the index is damaged, and no file goes for what a row says of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from ..layers.errors import UnknownKind
from ..span import DamagedSpan
from .content import layout_to_text, opened, verified_head
from .damage import DamagedIndex
from .file_ids import file_ids_in

if TYPE_CHECKING:
    from ..span import Head
    from .folder import StoreFolder
    from .index import Index
    from .index_rows import SpanRow
    from .pins import Pins

_ASKED: Final = 8  # files of a model that are asked for its layers


class Witness:
    """The files of a folder, asked about rows of its index."""

    def __init__(self, folder: StoreFolder, pins: Pins) -> None:
        self._folder = folder
        self._pins = pins

    def refute(self, index: Index, row: SpanRow) -> None:
        """DamagedIndex where a row's file is whole and says otherwise.

        A file that is damaged, gone or not to be read just now says nothing.
        """
        path = self._folder.span(row.file_id)
        with suppress(OSError, DamagedSpan, UnknownKind):
            span = opened(path, self._folder.files)
            span.close()
            if says(row, span.head, span.size, index.namespaces.layout(row.namespace)):
                return
            head, size = verified_head(path, self._folder.files)
            if not says(row, head, size, index.namespaces.layout(row.namespace)):
                raise DamagedIndex(f"the row of span {row.file_id} is not what its file says")

    def is_damaged(self, file_id: str) -> bool:
        """Whether a span's bytes, all of them, are seen not to be what was written."""
        try:
            verified_head(self._folder.span(file_id), self._folder.files)
        except DamagedSpan:
            return True
        except (OSError, UnknownKind):
            return False
        return False

    def refute_layout(self, index: Index, namespace: str) -> None:
        """DamagedIndex where a model's files hold other layers than the index says of it."""
        for row in index.some_of(namespace, _ASKED):
            self.refute(index, row)

    def refute_sizes(self, index: Index) -> None:
        """DamagedIndex where bytes are counted that no file has: for them good spans would go."""
        with index.snapshot():
            index.recount()
            sizes = index.sizes()
        for file_id in file_ids_in(self._folder.names()) & sizes.keys():
            with suppress(FileNotFoundError):
                same = self._folder.span(file_id).lstat().st_size == sizes[file_id]
                row = None if same else index.row(file_id)
                if row is not None:
                    self.refute(index, row)

    def refute_pins(self, file_ids: Sequence[str]) -> None:
        """DamagedIndex where one of these is pinned, as the list of pins says."""
        if file_ids and not (self._pins.read() or set()).isdisjoint(file_ids):
            raise DamagedIndex("what is pinned is not what the list of it says")


def says(row: SpanRow, head: Head, size: int, layout: str | None) -> bool:
    """Whether a row and its model's layers are what a file's head and size say."""
    told = (head.namespace, head.parent, head.start, head.tokens, head.resumes, size)
    same = told == (row.namespace, row.parent, row.start, row.tokens, row.resumes, row.bytes)
    return same and layout in (None, layout_to_text(head.layout))
