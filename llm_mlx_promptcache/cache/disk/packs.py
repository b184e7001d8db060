"""The index's table of packs: the bytes of each, and how many of them are still spans'.

Triggers count both: bytes of a pack that belong to none of its spans any more are dead.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from .damage import DamagedIndex
from .file_ids import is_file_id
from .index_rows import SELECT_ROWS, SpanRow, row_from, typed

DEAD_SHARE: Final = 3  # a pack of which this part is dead is written anew
_MOST: Final = 1 << 62
_SELECT = "SELECT file_id, bytes, live, spans FROM packs"
# The triggers' counts, counted anew: packs that differ, and spans of missing packs.
_MISCOUNTED = """
SELECT file_id FROM packs AS p WHERE (live, spans) !=
    (SELECT coalesce(sum(bytes), 0), count(*) FROM spans WHERE pack = p.file_id AND pack != '')
UNION ALL
SELECT file_id FROM spans AS s
WHERE pack != '' AND NOT EXISTS (SELECT 1 FROM packs WHERE file_id = s.pack)
LIMIT 1
"""


class PackRow(NamedTuple):
    """A pack: its file's bytes, those of them that are its spans', and the number of spans."""

    file_id: str
    bytes: int
    live: int
    spans: int

    @property
    def dead(self) -> int:
        """Bytes that belong to no span any more."""
        return self.bytes - self.live

    @property
    def is_wasteful(self) -> bool:
        """True if so much of it is dead that it is worth writing anew."""
        return self.dead * DEAD_SHARE >= self.bytes


class Packs:
    """The table of packs, on an index's connection."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def get(self, pack: str) -> PackRow | None:
        """A pack's row, if there is one."""
        values = self._db.execute(_SELECT + " WHERE file_id = ?", (pack,)).fetchone()
        return _row(values) if values is not None else None

    def all(self) -> list[PackRow]:
        """Every pack."""
        return [_row(values) for values in self._db.execute(_SELECT).fetchall()]

    def members(self, pack: str) -> list[SpanRow]:
        """The rows of a pack's spans, in the order of their path."""
        query = SELECT_ROWS + " WHERE pack = ? AND pack != '' ORDER BY start"
        return [row_from(values) for values in self._db.execute(query, (pack,)).fetchall()]

    # Changing; each of these inside a transaction.

    def put(self, pack: str, size: int) -> None:
        """Enter a pack whose spans are entered next."""
        self._db.execute("INSERT INTO packs (file_id, bytes) VALUES (?, ?)", (pack, size))

    def drop_empty(self, packs: Iterable[str]) -> list[str]:
        """Forget those of these packs that have no span left; returns their ids."""
        change = "DELETE FROM packs WHERE file_id = ? AND spans = 0"
        return [one for one in packs if one and self._db.execute(change, (one,)).rowcount]

    def drop_all_empty(self) -> list[str]:
        """Forget all packs that have no span left; returns their ids."""
        found = self._db.execute("SELECT file_id FROM packs WHERE spans = 0").fetchall()
        return self.drop_empty(one for (one,) in found if is_file_id(one))

    def recount(self, dead: int) -> None:
        """DamagedIndex unless the triggers' counts are right, `dead` of all packs together."""
        wrong = self._db.execute(_MISCOUNTED).fetchone()
        if wrong is not None:
            raise DamagedIndex(f"the pack or span {wrong[0]!r:.50} is not counted as it should be")
        counted = sum(pack.dead for pack in self.all())
        if counted != dead:
            raise DamagedIndex(f"{counted} bytes of packs are dead, the counters say {dead}")


def _row(values: Sequence[object]) -> PackRow:
    file_id, size, live, spans = typed(values, str, int, int, int)
    if not is_file_id(file_id) or not 0 <= live <= size < _MOST or not 0 <= spans < _MOST:
        raise DamagedIndex("a pack's row has values that can't be")
    return PackRow(file_id, size, live, spans)
