"""Witness: a span's file compared with its row, and the one that is believed.

The index is untrusted, and its digest is no secret. A whole file decides: if its head disagrees
with a row the index is damaged, and no file is removed because of such a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from ..layers.errors import UnknownKind
from ..span import DamagedSpan
from .content import layout_to_text, said_by
from .damage import DamagedIndex
from .file_ids import file_ids_in, packs_in

if TYPE_CHECKING:
    from .folder import StoreFolder
    from .index import Index
    from .index_rows import SpanRow
    from .pins import Pins
    from .span_file import FileSays

_ASKED: Final = 8  # files of a model that are asked for its layers


class Witness:
    """The files of a folder, asked about rows of its index."""

    def __init__(self, folder: StoreFolder, pins: Pins) -> None:
        self._folder = folder
        self._pins = pins

    def refute(self, index: Index, row: SpanRow) -> None:
        """DamagedIndex if a row's file is whole and says otherwise.

        A file that is damaged, gone or unreadable just now says nothing.
        """
        path = self._folder.place(row.file_id, row.pack)
        layout = index.namespaces.layout(row.namespace)
        with suppress(OSError, DamagedSpan, UnknownKind):
            if says(row, said_by(path, self._folder.files, verified=False), layout):
                return
            if not says(row, said_by(path, self._folder.files, verified=True), layout):
                raise DamagedIndex(f"the row of span {row.file_id} is not what its file says")

    def is_damaged(self, row: SpanRow) -> bool:
        """True if a span's bytes, all of them, are seen to differ from those written."""
        path = self._folder.place(row.file_id, row.pack)
        try:
            said_by(path, self._folder.files, verified=True)
        except DamagedSpan:
            return True
        except (OSError, UnknownKind):
            return False
        return False

    def refute_gone(self, row: SpanRow) -> None:
        """DamagedIndex if a span is in a whole pack and its row names another file, or none."""
        for pack in packs_in(self._folder.names()) - {row.pack}:
            path = self._folder.pack(pack)
            with suppress(OSError, DamagedSpan, UnknownKind):
                held = row.file_id in said_by(path, self._folder.files, verified=False).heads
                if held and row.file_id in said_by(path, self._folder.files, verified=True).heads:
                    raise DamagedIndex(f"span {row.file_id} is in a pack that its row denies")

    def refute_layout(self, index: Index, namespace: str) -> None:
        """DamagedIndex if a model's files hold other layers than the index says of it."""
        for row in index.some_of(namespace, _ASKED):
            self.refute(index, row)

    def refute_sizes(self, index: Index) -> None:
        """DamagedIndex if bytes are counted that no file has: they would evict good spans."""
        with index.snapshot():
            index.recount()
            sizes, packs = index.sizes(), {pack.file_id: pack.bytes for pack in index.packs.all()}
        names = self._folder.names()
        for file_id in file_ids_in(names) & sizes.keys():
            with suppress(FileNotFoundError):
                same = self._folder.span(file_id).lstat().st_size == sizes[file_id]
                row = None if same else index.row(file_id)
                if row is not None:
                    self.refute(index, row)
        for pack in packs_in(names) & packs.keys():
            with suppress(FileNotFoundError):
                if self._folder.pack(pack).lstat().st_size != packs[pack]:
                    self._refute_pack(index, pack, packs[pack])

    def _refute_pack(self, index: Index, pack: str, size: int) -> None:
        """DamagedIndex if a pack's file is whole and has another size than the index says."""
        with suppress(OSError, DamagedSpan, UnknownKind):
            told = said_by(self._folder.pack(pack), self._folder.files, verified=True).size
            known = index.packs.get(pack)
            if known is not None and known.bytes == size != told:
                raise DamagedIndex(f"the pack {pack} has {told} bytes and is said to have {size}")

    def refute_pins(self, file_ids: Sequence[str]) -> None:
        """DamagedIndex if one of these is pinned, by the list of pins."""
        if file_ids and not (self._pins.read() or set()).isdisjoint(file_ids):
            raise DamagedIndex("what is pinned is not what the list of it says")


def says(row: SpanRow, file: FileSays, layout: str | None) -> bool:
    """True if a row and its model's layers agree with a file."""
    head = file.heads.get(row.file_id)
    if head is None:
        return False
    size = file.shares[row.file_id]
    told = (head.namespace, head.parent, head.start, head.tokens, head.resumes, size)
    same = told == (row.namespace, row.parent, row.start, row.tokens, row.resumes, row.bytes)
    return same and layout in (None, layout_to_text(head.layout))
