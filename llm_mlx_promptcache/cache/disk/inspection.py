"""What is wrong in a store's folder: with the index, with the files, between them, with the pins.

All is read that a lookup reads. Other processes may work meanwhile: what seems wrong is looked at
again where nobody else can write to the index.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from enum import Enum, auto
from typing import NamedTuple

from ..layers.errors import UnknownKind
from ..span import DamagedSpan
from .content import layout_to_text, verified_head
from .damage import DamagedIndex
from .file_ids import file_ids_in
from .files import is_gone
from .folder import StoreFolder
from .index import Index
from .index_rows import SpanRow
from .pins import Pins
from .sweep import row_of


class Kind(Enum):
    """What a finding asks for."""

    INDEX = auto()  # another index, made from the files
    SPAN = auto()  # its bytes are damaged: it is removed
    LEFTOVER = auto()  # a row or a file without the other: swept
    PINS = auto()  # written again
    UNREADABLE = auto()  # the system can't read it now: nothing is lost yet


class Finding(NamedTuple):
    """Something wrong, in one line."""

    kind: Kind
    said: str
    file_id: str = ""


def inspect(index: Index, folder: StoreFolder, pins: Pins) -> Iterator[Finding]:
    """Everything that is wrong (law 3)."""
    with index.snapshot():  # others may write between two of its queries
        wrong, all_rows = list(index.check()), list(index.every_row())
    wrong += [str(row) for row in all_rows if isinstance(row, DamagedIndex)]
    rows = {row.file_id: row for row in all_rows if isinstance(row, SpanRow)}
    yield from (Finding(Kind.INDEX, said) for said in wrong)
    file_ids = file_ids_in(folder.names())
    for file_id in sorted(rows.keys() - file_ids):
        if _is_still(index, folder, file_id, row=True, file=False):
            yield Finding(Kind.LEFTOVER, f"span {file_id} has a row and no file", file_id)
    for file_id in sorted(file_ids - rows.keys()):
        if _is_still(index, folder, file_id, row=False, file=True):
            yield Finding(Kind.LEFTOVER, f"span {file_id} has a file and no row", file_id)
    for file_id in sorted(file_ids & rows.keys()):
        yield from _span(index, folder, rows[file_id])
    yield from _pins(index, pins)


def _span(index: Index, folder: StoreFolder, row: SpanRow) -> Iterator[Finding]:
    """One span's file, all of it, beside its row."""
    file_id = row.file_id
    try:
        head, size = verified_head(folder.span(file_id), folder.files)
    except FileNotFoundError:
        return  # evicted meanwhile by another process
    except DamagedSpan as error:
        if _is_still(index, folder, file_id, row=True, file=True):
            yield Finding(Kind.SPAN, f"span {file_id} can't be read: {error}", file_id)
        return
    except (OSError, UnknownKind) as error:
        yield Finding(Kind.UNREADABLE, f"span {file_id} can't be read just now: {error}", file_id)
        return
    said = row_of(file_id, size, head, folder)
    # Another process may have other tiers.
    if said._replace(tier=0, used_at=0) != row._replace(tier=0, used_at=0):
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
    """Whether a span has a row, and a file, when nobody else can change that."""
    try:
        with index.transaction():
            return (index.has(file_id), not is_gone(folder.span(file_id))) == (row, file)
    except sqlite3.OperationalError:  # a process holds the lock: what it does is not finished
        return False
