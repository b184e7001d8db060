"""Faults in a store's folder: in the index, in the files, between them, in the pins.

Everything is read that a lookup reads. Other processes may work meanwhile: a seeming fault is
checked again while nobody else can write to the index.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from ..layers.errors import UnknownKind
from ..span import DamagedSpan
from .content import layout_to_text, said_by
from .damage import DamagedIndex
from .file_ids import file_ids_in, packs_in
from .files import is_gone
from .folder import StoreFolder
from .index import Index
from .index_rows import SpanRow
from .pins import Pins
from .sweep import is_being_made, row_of

if TYPE_CHECKING:
    from .span_file import FileSays
    from .witness import Witness


class Kind(Enum):
    """The remedy that a finding needs."""

    INDEX = auto()  # another index, made from the files
    SPAN = auto()  # its bytes are damaged: it is removed
    ENDS = auto()  # those of its states and windows are: they are removed
    LEFTOVER = auto()  # a row or a file without the other: swept
    PINS = auto()  # written again
    UNREADABLE = auto()  # the system can't read it now: nothing is lost yet


class Finding(NamedTuple):
    """Something wrong, in one line."""

    kind: Kind
    said: str
    file_id: str = ""


def inspect(
    index: Index, folder: StoreFolder, pins: Pins, witness: Witness, *, contents: bool = True
) -> Iterator[Finding]:
    """Everything that is wrong (law 3); without `contents` no span's file is read."""
    with index.snapshot():  # others may write between two of its queries
        wrong, all_rows = list(index.check()), list(index.every_row())
    wrong += [str(row) for row in all_rows if isinstance(row, DamagedIndex)]
    rows = {row.file_id: row for row in all_rows if isinstance(row, SpanRow)}
    yield from (Finding(Kind.INDEX, said) for said in wrong)
    names = folder.names()
    try:
        yield from _apart(index, folder, rows, names, witness)
    except DamagedIndex as error:
        yield Finding(Kind.INDEX, str(error))
    if contents:
        yield from _contents(index, folder, rows.values(), names)
    yield from _pins(index, pins)


def _contents(
    index: Index, folder: StoreFolder, rows: Collection[SpanRow], names: Sequence[str]
) -> Iterator[Finding]:
    """Each file that has rows, read to its end."""
    file_ids, packs = file_ids_in(names), packs_in(names)
    for row in sorted(rows):
        if not row.pack and row.file_id in file_ids:
            yield from _file(index, folder, [row])
    in_packs: dict[str, list[SpanRow]] = {}
    for row in sorted(rows, key=lambda row: row.start):
        if row.pack in packs:
            in_packs.setdefault(row.pack, []).append(row)
    for held in in_packs.values():
        yield from _file(index, folder, held)


def _apart(
    index: Index,
    folder: StoreFolder,
    rows: dict[str, SpanRow],
    names: Sequence[str],
    witness: Witness,
) -> Iterator[Finding]:
    """Rows without a file, and files without a row (law 3)."""
    file_ids, packs = file_ids_in(names), packs_in(names)
    for row in sorted(rows.values()):
        there = row.pack in packs if row.pack else row.file_id in file_ids
        if not there and _is_still(index, folder, row.file_id, row=True, file=False):
            witness.refute_gone(row)
            said = f"span {row.file_id} has a row and no file"
            yield Finding(Kind.LEFTOVER, said, row.file_id)
    for file_id in sorted(file_ids - rows.keys()):
        if _is_still(index, folder, file_id, row=False, file=True):
            yield Finding(Kind.LEFTOVER, f"span {file_id} has a file and no row", file_id)
    for row in sorted(rows.values()):
        if row.pack and row.file_id in file_ids and _is_beside(index, folder, row.file_id):
            said = f"span {row.file_id} has a file beside its pack"
            yield Finding(Kind.LEFTOVER, said, row.file_id)
    known = {row.pack for row in rows.values()}
    for pack in sorted(packs - known):
        if _is_unknown(index, folder, pack):
            yield Finding(Kind.LEFTOVER, f"pack {pack} has a file and no row", pack)


def _file(index: Index, folder: StoreFolder, rows: Sequence[SpanRow]) -> Iterator[Finding]:
    """One file, all of it, compared with its rows."""
    first = rows[0]
    name = f"pack {first.pack}" if first.pack else f"span {first.file_id}"
    path = folder.place(first.file_id, first.pack)
    try:
        file = said_by(path, folder.files, verified=True)
    except FileNotFoundError:
        return  # evicted or packed meanwhile by another process
    except DamagedSpan as error:
        if _is_still(index, folder, first.file_id, row=True, file=True):
            yield Finding(Kind.SPAN, f"{name} can't be read: {error}", first.file_id)
        return
    except (OSError, UnknownKind) as error:
        said = f"{name} can't be read just now: {error}"
        yield Finding(Kind.UNREADABLE, said, first.file_id)
        return
    if file.spoiled and _is_still(index, folder, first.file_id, row=True, file=True):
        said = f"the states and windows of {name} can't be read: {file.spoiled}"
        yield Finding(Kind.ENDS, said, first.file_id)
    for row in rows:
        yield from _beside(index, folder, row, file)


def _beside(index: Index, folder: StoreFolder, row: SpanRow, file: FileSays) -> Iterator[Finding]:
    """A row compared with a whole file's own record of it."""
    file_id, head = row.file_id, file.heads.get(row.file_id)
    if head is not None:
        said = row_of(file_id, head, file.shares[file_id], folder, row.pack)
    # Another process may have other tiers.
    if head is None or said._replace(tier=0, used_at=0) != row._replace(tier=0, used_at=0):
        yield Finding(Kind.INDEX, f"the row of span {file_id} is not what its file says")
    elif index.namespaces.layout(row.namespace) not in (None, layout_to_text(head.layout)):
        yield Finding(Kind.INDEX, f"span {file_id} holds other layers than its model's row says")


def _pins(index: Index, pins: Pins) -> Iterator[Finding]:
    try:
        listed = pins.read()
    except OSError as error:
        yield Finding(Kind.UNREADABLE, f"what is pinned can't be read just now: {error}")
        return
    pinned = set(index.pinned())
    if listed is None and pinned:
        yield Finding(Kind.PINS, "the list of what is pinned is missing or damaged")
    elif listed is not None and pinned != {file_id for file_id in listed if index.has(file_id)}:
        yield Finding(Kind.INDEX, "what is pinned is not what the list of it says")


def _is_still(index: Index, folder: StoreFolder, file_id: str, *, row: bool, file: bool) -> bool:
    """True if a span has a row, and a file, while nobody else can change that."""

    def look() -> bool:
        found = index.row(file_id)
        place = folder.place(file_id, "" if found is None else found.pack)
        return (found is not None, not is_gone(place)) == (row, file)

    return _alone(index, look)


def _is_beside(index: Index, folder: StoreFolder, file_id: str) -> bool:
    """True if a span in a pack has a file of its own that nobody is about to remove."""

    def look() -> bool:
        found = index.row(file_id)
        if found is None or not found.pack or is_gone(folder.span(file_id)):
            return False
        return not is_being_made(folder, found.pack)

    return _alone(index, look)


def _is_unknown(index: Index, folder: StoreFolder, pack: str) -> bool:
    """True if a pack is there that the index does not know."""
    return _alone(index, lambda: index.packs.get(pack) is None and not is_gone(folder.pack(pack)))


def _alone(index: Index, look: Callable[[], bool]) -> bool:
    """True if `look` finds it so while nobody else can change it."""
    try:
        with index.transaction():
            return look()
    except sqlite3.OperationalError:  # a process holds the lock: its work is not finished
        return False
