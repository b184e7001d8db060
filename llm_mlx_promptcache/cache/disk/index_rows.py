"""Rows of the index: written with a digest, and checked when read as a file's header is.

The digest is against accidents, like that of a span's file: a flipped bit must not send a lookup
to another span, nor its victim's name to another file.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import xxhash

from ..trie import Tokens
from ..worth import density
from .damage import DamagedIndex
from .file_ids import is_file_id

SELECT_ROWS: Final = (
    "SELECT file_id, namespace, parent, start, tokens, resumes, tier, bytes, pack, digest"
    " FROM spans"
)
SELECT_COUNTED: Final = (
    "SELECT file_id, namespace, parent, start, tokens, resumes, tier, bytes, pack, digest,"
    " hits, used_at, pinned, last_use, children, first, count, density_bucket FROM spans"
)
MOST_TOKENS: Final = 1 << 23  # of one span; contexts are shorter
MOST_LABEL: Final = 200
_MOST: Final = 1 << 62  # of any number
_MOST_TIERS: Final = 1 << 10
_FIELDS: Final = (str, str, str, int, bytes, int, int, int, str, bytes)


class SpanRow(NamedTuple):
    """A span as it enters the index; `bytes` are its file's, or its share of its `pack`'s."""

    file_id: str
    namespace: str
    parent: str
    start: int
    tokens: Tokens[int]
    resumes: bool
    tier: int
    bytes: int
    used_at: int = 0
    pack: str = ""

    @property
    def end(self) -> int:
        """The token behind its last one."""
        return self.start + len(self.tokens)


class Namespace(NamedTuple):
    """A namespace: its layers, its model's identity, and the name it is opened under."""

    name: str
    layout: str
    label: str
    identity: str


class Totals(NamedTuple):
    """The totals of the index, the tick of the last use, and the time of the last sweep.

    `bytes` are those of spans; `dead` are bytes of packs that belong to no span any more.
    """

    spans: int
    tokens: int
    bytes: int
    dead: int
    tick: int
    swept: int

    @property
    def held(self) -> int:
        """Bytes that all files have."""
        return self.bytes + self.dead


class ListedRow(NamedTuple):
    """A row with the model's label and its span's counts."""

    row: SpanRow
    label: str
    hits: int
    used_at: int
    pinned: bool


def first_of(row: SpanRow) -> int:
    """The token by which a row is found; -1 for a checkpoint, which has none."""
    return row.tokens[0] if len(row.tokens) else -1


def digest_of(row: SpanRow) -> bytes:
    """A digest of the part of a row that only changes with its file."""
    fields = [*row[:4], int(row.resumes), row.tier, row.bytes, row.pack]
    made = xxhash.xxh3_64(json.dumps(fields).encode())
    made.update(row.tokens.tobytes())
    return made.digest()


def digest_of_namespace(namespace: Namespace) -> bytes:
    """A digest of a namespace's row."""
    return xxhash.xxh3_64_digest(json.dumps(namespace).encode())


def row_from(values: Sequence[Any]) -> SpanRow:
    """The row of SELECT_ROWS; DamagedIndex if it is none that we wrote."""
    if tuple(map(type, values)) != _FIELDS:
        raise DamagedIndex("a span's row has values of other types")
    file_id, namespace, parent, start, stored, resumes, tier, size, pack, digest = values
    if not is_file_id(file_id) or any(name and not is_file_id(name) for name in (parent, pack)):
        raise DamagedIndex("a span's row has a name that is none")
    numbers = max(start, size) < _MOST and min(start, tier) >= 0 < size and tier < _MOST_TIERS
    numbers = numbers and resumes in (0, 1)
    if not numbers or len(stored) % 4 or len(stored) > 4 * MOST_TOKENS:
        raise DamagedIndex(f"the row of span {file_id} has sizes that are none")
    tokens = array("I")
    tokens.frombytes(stored)
    row = SpanRow(file_id, namespace, parent, start, tokens, resumes == 1, tier, size, 0, pack)
    if digest_of(row) != digest:
        raise DamagedIndex(f"the row of span {file_id} is not what was written")
    return row


def whole_row(values: Sequence[Any], tick: int) -> SpanRow:
    """The row of SELECT_COUNTED, with derived values and counts checked too."""
    row = row_from(values[: len(_FIELDS)])
    counted = typed(values[len(_FIELDS) :], *(int,) * 8)
    hits, used_at, pinned, last_use, children, *derived = counted
    expected = [first_of(row), len(row.tokens), density(len(row.tokens), row.bytes)]
    sane = min(hits, used_at, last_use, children) >= 0 and last_use <= tick and pinned in (0, 1)
    sane = sane and max(hits, used_at) < _MOST
    if derived != expected or not sane:
        raise DamagedIndex(f"the row of span {row.file_id} has counters that can't be")
    return row


def checked_file_ids(rows: Sequence[Sequence[Any]]) -> list[str]:
    """The first column of rows as file ids; DamagedIndex if one is none."""
    for row in rows:
        if not is_file_id(row[0]):
            raise DamagedIndex("a span's row has a name that is none")
    return [row[0] for row in rows]


def totals_from(rows: Sequence[Sequence[Any]]) -> Totals:
    """The counters, from their only row; DamagedIndex if they can't be right."""
    if len(rows) != 1 or any(type(value) is not int for value in rows[0]):
        raise DamagedIndex("its counters are not ours")
    *counted, proof = rows[0]
    found = Totals(*counted)
    if (
        min(counted) < 0
        or max(counted) >= _MOST
        or proof != found.spans * 3 + found.tokens * 5 + found.bytes * 7 + found.dead * 11
    ):
        raise DamagedIndex("its counters are not what was counted")
    return found


def namespace_from(values: Sequence[Any]) -> Namespace:
    """A namespace; DamagedIndex if its row is none that we wrote."""
    *fields, digest = values
    if tuple(map(type, fields)) != (str,) * len(Namespace._fields):
        raise DamagedIndex("a namespace's row has values of other types")
    found = Namespace(*fields)
    if digest_of_namespace(found) != digest:
        raise DamagedIndex("a namespace's row is not what was written")
    return found


def typed(values: Sequence[Any], *types: type) -> Sequence[Any]:
    """Values of a row, which are only usable with these types; DamagedIndex if they differ."""
    if tuple(map(type, values)) != types:
        raise DamagedIndex("a row has values of other types")
    return values
