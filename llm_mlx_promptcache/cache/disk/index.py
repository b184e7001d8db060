"""The index of stored spans: one SQLite file that several processes read and write at once.

Rows are found by their parent and the token that comes next, so a lookup reads its own path and
nothing else. Totals and counts of children are kept by triggers: no writer can forget them.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..span import StoredPath, StoredSpan
from ..trie import Tokens, common_prefix
from ..worth import density
from .damage import DamagedIndex
from .files import same_file
from .index_log import IndexLog
from .index_rows import (
    SELECT_COUNTED,
    SELECT_ROWS,
    ListedRow,
    Namespace,
    SpanRow,
    Totals,
    checked_file_ids,
    digest_of,
    first_of,
    row_from,
    totals_from,
    typed,
    whole_row,
)
from .index_schema import connect, create, schema_cookie, verify
from .namespaces import Namespaces
from .packs import Packs

_BUSY_SECONDS = 5.0
# Another process may have evicted the parent since it was looked up.
_INSERT = """
INSERT OR IGNORE INTO spans (file_id, namespace, parent, start, first, tokens, count, resumes, tier,
    density_bucket, bytes, pack, digest, last_use, used_at)
SELECT :file_id, :namespace, :parent, :start, :first, :tokens, :count, :resumes, :tier,
    :density_bucket, :bytes, :pack, :digest, (SELECT tick FROM totals), :used_at
WHERE :parent = '' OR EXISTS (SELECT 1 FROM spans WHERE file_id = :parent)
"""
_MOVE = """
UPDATE spans SET bytes = :bytes, pack = :pack, resumes = :resumes,
    density_bucket = :density_bucket, digest = :digest
WHERE file_id = :file_id
"""
_STEP = SELECT_ROWS + " WHERE namespace = ? AND parent = ? AND start = ? AND first = ?"
_CHECKPOINTS = (
    SELECT_ROWS + " WHERE parent = ? AND start <= ? AND first = -1 AND namespace = ? LIMIT 10000"
)
_SUBTREE = """
WITH RECURSIVE below (file_id) AS (
    SELECT file_id FROM spans WHERE file_id = ?
    UNION SELECT s.file_id FROM spans AS s JOIN below ON s.parent = below.file_id
)
SELECT file_id FROM below
"""


class Index:
    """One connection to a folder's index; not locked, the owner is."""

    def __init__(self, path: Path, wait: float = _BUSY_SECONDS, *, new: bool = False) -> None:
        """Open an index, or make a `new` one if nothing is there.

        FileNotFoundError if there is none, DamagedIndex if it is none of ours.
        """
        self.path = path
        self.transactions = 0  # that were begun
        self._wait = wait
        if new:
            # SQLite would make it with the umask's mode; its -wal and -shm copy the mode found.
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
            os.close(os.open(path, flags, 0o600))
        # It must not be opened here: closing it would drop the locks that other connections of
        # this process hold on it, and others would take the log from under them.
        status = path.stat()
        self.inode = (status.st_dev, status.st_ino)
        self.db = connect(path, wait)
        self.namespaces = Namespaces(self.db)
        self.packs = Packs(self.db)
        self.log = IndexLog(self.db, path)
        try:
            self._prepare(new=new)
            # Else one that was set aside would be used on and on, with the log of the new one.
            if not same_file(path, self.inode):
                raise sqlite3.OperationalError("replaced while it was opened: locked")
        except BaseException:
            self.db.close()
            raise

    def _prepare(self, *, new: bool) -> None:
        self.db.execute("PRAGMA secure_delete=ON")
        self.db.execute("PRAGMA synchronous=NORMAL")
        if new:
            self.db.execute("PRAGMA synchronous=OFF")  # half of one is noticed, and made anew
            with self.transaction():
                create(self.db)
        self._cookie = -1
        self.look_at_schema()
        self.log.begin()

    def look_at_schema(self) -> None:
        """DamagedIndex unless the schema is ours; it is read again after any change."""
        self.db.size = self.log.index_bytes
        cookie = schema_cookie(self.db)
        if cookie != self._cookie:
            verify(self.db)
            self._cookie = cookie

    def close(self) -> None:
        """Close the file."""
        self.db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One writer at a time across processes; all of it or nothing."""
        self.db.execute("BEGIN IMMEDIATE")
        self.transactions += 1
        try:
            yield
        except BaseException:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    @contextmanager
    def durable_transaction(self) -> Iterator[None]:
        """A transaction that a power cut does not take back once it is over."""
        self.db.execute("PRAGMA synchronous=FULL")
        self.db.execute("PRAGMA fullfsync=ON")  # on macOS; elsewhere it changes nothing
        try:
            with self.transaction():
                yield
        finally:
            self.db.execute("PRAGMA fullfsync=OFF")
            self.db.execute("PRAGMA synchronous=NORMAL")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """The index as it is at this moment: only the first of several queries can meet a lock."""
        self.db.execute("BEGIN")
        try:
            yield
        finally:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")

    def wait_for_locks(self, seconds: float) -> None:
        """Wait so long for other processes from now on."""
        if seconds != self._wait:
            self.db.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
            self._wait = seconds

    # Looking up.

    def walk(self, namespace: str, tokens: Tokens[int]) -> StoredPath:
        """The stored part of `tokens`: below each span, only a child that starts where they part.

        The tokens decide, not a hash (law 5).
        """
        found = StoredPath([], [])
        file_id, end = "", 0
        while end < len(tokens):
            step = self.step(namespace, file_id, end, tokens)
            if step is None:
                break
            row, same = step
            whole = same == len(row.tokens)
            resumes = row.resumes and whole
            passed = StoredSpan(row.file_id, end, end + same, resumes, row.parent, row.pack)
            found.spans.append(passed)
            file_id, end = row.file_id, end + same
            found.checkpoints.extend(self._checkpoints(namespace, file_id, row.start, end))
        return found

    def step(
        self, namespace: str, file_id: str, at: int, tokens: Tokens[int]
    ) -> tuple[SpanRow, int] | None:
        """The span with which a path goes on behind another, and the number of shared tokens."""
        values = self.db.execute(_STEP, (namespace, file_id, at, tokens[at])).fetchone()
        if values is None:
            return None
        row = row_from(values)
        same = common_prefix(row.tokens, tokens, 0, at)
        if not same or (row.namespace, row.parent, row.start) != (namespace, file_id, at):
            raise DamagedIndex(f"span {row.file_id} stands where it does not belong")
        return row, same

    def _checkpoints(self, namespace: str, file_id: str, start: int, end: int) -> list[StoredSpan]:
        """The checkpoints on a span's path from `start` up to `end` that hang there."""
        rows = map(row_from, self.db.execute(_CHECKPOINTS, (file_id, end, namespace)).fetchall())
        found = []
        for row in rows:
            if len(row.tokens) or row.parent != file_id:
                raise DamagedIndex(f"span {row.file_id} stands where it does not belong")
            if start < row.start:
                found.append(StoredSpan(row.file_id, row.start, row.start, parent=file_id))
        return found

    def totals(self) -> Totals:
        """The totals, counted by the triggers."""
        query = "SELECT spans, tokens, bytes, dead, tick, swept, proof FROM totals LIMIT 2"
        return totals_from(self.db.execute(query).fetchall())

    def has(self, file_id: str) -> bool:
        """True if a span has a row."""
        query = "SELECT 1 FROM spans WHERE file_id = ?"
        return self.db.execute(query, (file_id,)).fetchone() is not None

    def row(self, file_id: str) -> SpanRow | None:
        """A span's row."""
        values = self.db.execute(SELECT_ROWS + " WHERE file_id = ?", (file_id,)).fetchone()
        return row_from(values) if values is not None else None

    def at(self, row: SpanRow) -> SpanRow | None:
        """The row in this one's place."""
        step = row.namespace, row.parent, row.start, first_of(row)
        values = self.db.execute(_STEP, step).fetchone()
        return row_from(values) if values is not None else None

    def some_of(self, namespace: str, most: int) -> list[SpanRow]:
        """At most so many rows of a namespace."""
        query = SELECT_ROWS + " WHERE namespace = ? LIMIT ?"
        return [row_from(values) for values in self.db.execute(query, (namespace, most)).fetchall()]

    def sizes(self) -> dict[str, int]:
        """The bytes of each file that holds one span."""
        found = self.db.execute("SELECT file_id, bytes FROM spans WHERE pack = ''").fetchall()
        for values in found:
            typed(values, str, int)
        return dict(found)

    def file_ids(self) -> list[str]:
        """Every span's file id."""
        return checked_file_ids(self.db.execute("SELECT file_id FROM spans").fetchall())

    def places(self) -> dict[str, str]:
        """Every span's file id, and its pack, if it is in one."""
        found = self.db.execute("SELECT file_id, pack FROM spans").fetchall()
        checked_file_ids(found)
        checked_file_ids([(pack,) for _, pack in found if pack != ""])
        return dict(found)

    def pinned(self) -> list[str]:
        """The file ids of pinned spans."""
        query = "SELECT file_id FROM spans WHERE pinned != 0"
        return checked_file_ids(self.db.execute(query).fetchall())

    def every_row(self) -> Iterator[SpanRow | DamagedIndex]:
        """Each span's row, or its fault: everything that is read of it anywhere."""
        tick = self.totals().tick
        for values in self.db.execute(SELECT_COUNTED):
            try:
                yield whole_row(values, tick)
            except DamagedIndex as error:
                yield error

    def listed(self) -> list[ListedRow]:
        """Every span with its counts, parents before their children.

        A span hangs on one that was stored before it.
        """
        labels = self.namespaces.labels()
        found: list[ListedRow] = []
        known = {""}
        tick = self.totals().tick
        for values in self.db.execute(SELECT_COUNTED + " ORDER BY rowid"):
            row = whole_row(values, tick)
            if row.parent not in known:
                raise DamagedIndex(f"span {row.file_id} hangs on nothing")
            known.add(row.file_id)
            hits, used_at, pinned = values[10:13]
            label = labels.get(row.namespace, "")
            found.append(ListedRow(row, label, hits, used_at, pinned != 0))
        return found

    # Changing; each of these inside a transaction.

    def add(self, row: SpanRow, layout: str, label: str = "", identity: str = "") -> bool:
        """Enter a span; False if one is there, its parent is gone, or its model is another."""
        known = self.namespaces.get(row.namespace)
        other = known is not None and known.layout != layout
        if other and self.some_of(row.namespace, 1):
            return False
        if known is None or label or other:
            self.namespaces.put(Namespace(row.namespace, layout, label, identity))
        self.db.execute("UPDATE totals SET tick = tick + 1")
        return self.db.execute(_INSERT, _values(row)).rowcount == 1

    def move(self, row: SpanRow) -> None:
        """Enter this row's new place of a span's bytes, and whether it still resumes."""
        self.db.execute(_MOVE, _values(row))

    def touch(self, file_ids: Sequence[str], now: int) -> None:
        """Count a use of each."""
        self.db.execute("UPDATE totals SET tick = tick + 1")
        self.db.executemany(
            "UPDATE spans SET hits = hits + 1, last_use = (SELECT tick FROM totals), used_at = ?"
            " WHERE file_id = ?",
            [(now, file_id) for file_id in file_ids],
        )

    def pin(self, file_id: str, *, pinned: bool) -> bool:
        """Keep a span from being evicted, or no longer; True if that is a change."""
        change = "UPDATE spans SET pinned = ? WHERE file_id = ? AND pinned != ?"
        return self.db.execute(change, (pinned, file_id, pinned)).rowcount == 1

    def below(self, file_id: str) -> list[SpanRow]:
        """The spans below a span, at any depth."""
        file_ids = checked_file_ids(self.db.execute(_SUBTREE, (file_id,)).fetchall())
        rows = (self.row(one) for one in file_ids if one != file_id)
        return [row for row in rows if row is not None]

    def drop(self, file_id: str) -> list[str]:
        """Take a span out with all that hangs on it; returns their file ids."""
        file_ids = checked_file_ids(self.db.execute(_SUBTREE, (file_id,)).fetchall())
        # Children first: the trigger counts at their parents.
        self.db.executemany(
            "DELETE FROM spans WHERE file_id = ?", [(s,) for s in reversed(file_ids)]
        )
        return file_ids

    def swept(self, now: int) -> None:
        """Remember the time of a sweep."""
        self.db.execute("UPDATE totals SET swept = ?", (now,))

    def wipe(self) -> None:
        """Forget all rows."""
        self.db.execute("DELETE FROM spans")
        self.db.execute("DELETE FROM packs")
        self.db.execute("DELETE FROM namespaces")

    def check(self) -> Iterator[str]:
        """Faults of the index itself, a line each."""
        (found,) = self.db.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            yield f"the index is damaged: {found}"
            return
        yield from self._check_counters()

    def recount(self) -> None:
        """DamagedIndex unless the counters agree with the rows."""
        held = self.db.execute("SELECT count(*), sum(count), sum(bytes) FROM spans").fetchone()
        counted, told = tuple(value or 0 for value in held), self.totals()[:3]
        if counted != told:
            raise DamagedIndex(f"spans, tokens, bytes are {counted}, the counters say {told}")
        self.packs.recount(self.totals().dead)

    def _check_counters(self) -> Iterator[str]:
        self.namespaces.check()
        self.recount()
        query = """SELECT file_id, children FROM spans AS s WHERE children !=
            (SELECT count(*) FROM spans WHERE parent = s.file_id)"""
        for file_id, children in self.db.execute(query):
            yield f"span {file_id} is said to have {children} children and has not"
        query = """SELECT file_id, parent FROM spans AS s WHERE parent != '' AND NOT EXISTS
            (SELECT 1 FROM spans WHERE file_id = s.parent)"""
        for file_id, parent in self.db.execute(query):
            yield f"span {file_id} hangs on {parent}, which is gone"


def _values(row: SpanRow) -> dict[str, object]:
    """A row and the values that follow from it, as its columns."""
    return row._asdict() | {
        "tokens": row.tokens.tobytes(),
        "count": len(row.tokens),
        "first": first_of(row),
        "density_bucket": density(len(row.tokens), row.bytes),
        "digest": digest_of(row),
    }
