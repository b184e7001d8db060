"""The index of stored spans: one SQLite file that several processes read and write at once.

Rows are found by their parent and the token that comes next, so a lookup reads its own path and
nothing else. Totals and counts of children are kept by triggers: no writer can forget them.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from .policies import density
from .store import Found, StoredSpan
from .trie import Tokens, common_prefix

VERSION: Final = 3
_BUSY_SECONDS = 5.0
_POLL_SECONDS = 0.01
_LONG_LOG = 4 << 20
_CHECKPOINT = -1  # the `first` token of a span that has none
_ALTERNATING = 100  # openings of others after which a model that came back once counts as gone
_SCHEMA = """
CREATE TABLE namespaces (
    name TEXT PRIMARY KEY,
    layout TEXT NOT NULL,
    label TEXT NOT NULL,
    identity TEXT NOT NULL
);
CREATE TABLE models (
    identity TEXT NOT NULL,
    label TEXT NOT NULL,
    opened INTEGER NOT NULL,
    came_back INTEGER NOT NULL,
    PRIMARY KEY (identity, label)
);
CREATE TABLE spans (
    stem TEXT PRIMARY KEY,
    namespace TEXT NOT NULL,
    parent TEXT NOT NULL,
    start INTEGER NOT NULL,
    first INTEGER NOT NULL,
    tokens BLOB NOT NULL,
    count INTEGER NOT NULL,
    resumes INTEGER NOT NULL,
    tier INTEGER NOT NULL,
    octave INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    hits INTEGER NOT NULL DEFAULT 0,
    last_use INTEGER NOT NULL,
    used_at INTEGER NOT NULL,
    pinned INTEGER NOT NULL DEFAULT 0,
    children INTEGER NOT NULL DEFAULT 0,
    bucket INTEGER AS ((tier * 2 + (hits > 0)) * 65536 + octave),
    UNIQUE (namespace, parent, start, first)
);
CREATE INDEX by_parent ON spans (parent, start);
CREATE INDEX by_worth ON spans (children, pinned, bucket, last_use, stem);
CREATE INDEX by_age ON spans (namespace, children, used_at, pinned);
CREATE TABLE totals (spans INTEGER, tokens INTEGER, bytes INTEGER, tick INTEGER, swept INTEGER);
INSERT INTO totals VALUES (0, 0, 0, 0, 0);
CREATE TRIGGER added AFTER INSERT ON spans BEGIN
    UPDATE totals SET spans = spans + 1, tokens = tokens + NEW.count, bytes = bytes + NEW.bytes;
    UPDATE spans SET children = children + 1 WHERE stem = NEW.parent;
END;
CREATE TRIGGER removed AFTER DELETE ON spans BEGIN
    UPDATE totals SET spans = spans - 1, tokens = tokens - OLD.count, bytes = bytes - OLD.bytes;
    UPDATE spans SET children = children - 1 WHERE stem = OLD.parent;
END;
"""
# Another process may have evicted the parent since it was looked up.
_INSERT = """
INSERT OR IGNORE INTO spans (stem, namespace, parent, start, first, tokens, count, resumes, tier,
    octave, bytes, last_use, used_at)
SELECT :stem, :namespace, :parent, :start, :first, :tokens, :count, :resumes, :tier, :octave,
    :bytes, (SELECT tick FROM totals), :used_at
WHERE :parent = '' OR EXISTS (SELECT 1 FROM spans WHERE stem = :parent)
"""
_STEP = """
SELECT stem, tokens, resumes FROM spans
WHERE namespace = ? AND parent = ? AND start = ? AND first = ?
"""
_CHECKPOINTS = """
SELECT stem, start FROM spans WHERE parent = ? AND start <= ? AND first = -1 AND namespace = ?
"""
_SUBTREE = """
WITH RECURSIVE below (stem) AS (
    SELECT stem FROM spans WHERE stem = ?
    UNION SELECT s.stem FROM spans AS s JOIN below ON s.parent = below.stem
)
SELECT stem FROM below
"""
# All names that a model was opened under have been given to another one since. Where two take
# turns (environments with other versions of mlx, say), both stay.
_SUPERSEDED = """
SELECT name FROM namespaces AS n JOIN models AS m ON m.identity = n.identity GROUP BY name
HAVING min((SELECT max(opened) FROM models WHERE label = m.label) - m.opened
    - m.came_back * ?) > 0
"""


class Row(NamedTuple):
    """A span as it enters the index."""

    stem: str
    namespace: str
    parent: str
    start: int
    tokens: Tokens[int]
    resumes: bool
    tier: int
    bytes: int
    used_at: int


class Totals(NamedTuple):
    """What the index holds in all, the tick of the last use, and when it was last swept."""

    spans: int
    tokens: int
    bytes: int
    tick: int
    swept: int


class Index:
    """One connection to a folder's index; not locked, the owner is."""

    def __init__(self, path: Path, wait: float = _BUSY_SECONDS) -> None:
        self.path = path
        self.transactions = 0  # that were begun
        self._wait = wait
        # SQLite would make it with the umask's mode; its -wal and -shm copy the mode found. One
        # that is there must not be opened here: closing it would drop the locks that other
        # connections of this process hold on it, and others would take the log from under them.
        if path.is_symlink():
            raise OSError(f"{path} is a link; remove it")
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
        with suppress(FileExistsError):
            os.close(os.open(path, flags, 0o600))
        self.inode = (path.stat().st_dev, path.stat().st_ino)
        self.db = sqlite3.connect(path, timeout=wait, check_same_thread=False, isolation_level=None)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=NORMAL")
        self.db.execute("PRAGMA secure_delete=ON")
        # What VACUUM puts aside meanwhile are tokens: not in a folder that others can write to.
        self.db.execute("PRAGMA temp_store=MEMORY")
        # SQLite would move its log home inside somebody's insert, and wait for the disk there.
        self.db.execute("PRAGMA wal_autocheckpoint=0")

    @property
    def version(self) -> int:
        """The schema's version; 0 where there is none yet."""
        (found,) = self.db.execute("PRAGMA user_version").fetchone()
        return int(found)

    def create(self) -> None:
        """Make the tables, inside a transaction of the caller's."""
        # `executescript` would commit the caller's transaction first.
        for statement in _statements(_SCHEMA):
            self.db.execute(statement)
        self.db.execute(f"PRAGMA user_version = {VERSION}")

    def close(self) -> None:
        """Let go of the file."""
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
    def snapshot(self) -> Iterator[None]:
        """The index as it is at this moment: only the first query of several can meet a lock."""
        self.db.execute("BEGIN")
        try:
            yield
        finally:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")

    def wait_for_locks(self, seconds: float) -> None:
        """From now on wait so long for other processes."""
        if seconds != self._wait:
            self.db.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
            self._wait = seconds

    # Looking up.

    def layout(self, namespace: str) -> Any:
        """A namespace's layout as JSON data; None where it is unknown."""
        query = "SELECT layout FROM namespaces WHERE name = ?"
        row = self.db.execute(query, (namespace,)).fetchone()
        return json.loads(row[0]) if row is not None else None

    def walk(self, namespace: str, tokens: Tokens[int]) -> Found:
        """What is stored along `tokens`: below each span, only a child that starts where they part.

        The tokens decide, not a hash (law 5).
        """
        found = Found([], [])
        stem, end = "", 0
        while end < len(tokens):
            row = self.db.execute(_STEP, (namespace, stem, end, tokens[end])).fetchone()
            if row is None:
                break
            stored = array("I")
            stored.frombytes(row[1])
            same = common_prefix(stored, tokens, 0, end)
            whole = same == len(stored)
            found.spans.append(StoredSpan(row[0], end, end + same, bool(row[2]) and whole))
            stem, end = row[0], end + same
            checkpoints = self.db.execute(_CHECKPOINTS, (stem, end, namespace))
            found.checkpoints.extend(StoredSpan(s, at, at) for s, at in checkpoints)
        return found

    def totals(self) -> Totals:
        """Counted by the triggers."""
        return Totals(*self.db.execute("SELECT * FROM totals").fetchone())

    def rows(self) -> list[tuple[str, str]]:
        """Every span's stem and parent."""
        return self.db.execute("SELECT stem, parent FROM spans").fetchall()

    def superseded_by_model(self) -> list[tuple[str, int, int]]:
        """A label, and the spans and bytes under it that nobody can open any more."""
        query = """SELECT label, count(*), sum(bytes) FROM spans JOIN namespaces
            ON name = namespace WHERE name = ? GROUP BY label"""
        return [
            row for name in self.superseded() for row in self.db.execute(query, (name,)).fetchall()
        ]

    def by_model(self) -> list[tuple[str, int, int]]:
        """A label, and the spans and bytes under it."""
        query = """SELECT coalesce(label, ''), count(*), sum(bytes) FROM spans
            LEFT JOIN namespaces ON name = namespace GROUP BY 1 ORDER BY 3 DESC"""
        return self.db.execute(query).fetchall()

    def listed(self) -> list[tuple[Any, ...]]:
        """Every span with what is counted of it (`listing.py`), parents before what hangs on them.

        A span hangs on one that was stored before it.
        """
        query = """SELECT stem, parent, namespace, coalesce(label, ''), start, tokens, tier, bytes,
            hits, used_at, pinned, resumes FROM spans LEFT JOIN namespaces ON name = namespace
            ORDER BY spans.rowid"""
        return self.db.execute(query).fetchall()

    # Changing; each of these inside a transaction.

    def add(self, row: Row, layout: str, label: str = "", identity: str = "") -> bool:
        """Enter a span; False where its place is taken, or its parent gone."""
        self.db.execute(
            "INSERT INTO namespaces VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE"
            " SET label = excluded.label, identity = excluded.identity WHERE excluded.label != ''",
            (row.namespace, layout, label, identity),
        )
        self.db.execute("UPDATE totals SET tick = tick + 1")
        values = row._asdict() | {
            "tokens": row.tokens.tobytes(),
            "count": len(row.tokens),
            "first": row.tokens[0] if len(row.tokens) else _CHECKPOINT,
            "octave": density(len(row.tokens), row.bytes),
        }
        return self.db.execute(_INSERT, values).rowcount == 1

    def touch(self, stems: Sequence[str], now: int) -> None:
        """Count a use of each."""
        self.db.execute("UPDATE totals SET tick = tick + 1")
        self.db.executemany(
            "UPDATE spans SET hits = hits + 1, last_use = (SELECT tick FROM totals), used_at = ?"
            " WHERE stem = ?",
            [(now, stem) for stem in stems],
        )

    def pin(self, stem: str, pinned: bool) -> bool:
        """Keep a span from being evicted, or no longer; whether that is a change."""
        change = "UPDATE spans SET pinned = ? WHERE stem = ? AND pinned != ?"
        return self.db.execute(change, (pinned, stem, pinned)).rowcount == 1

    def drop(self, stem: str) -> list[str]:
        """Take a span out with all that hangs on it; returns their stems."""
        stems = [row[0] for row in self.db.execute(_SUBTREE, (stem,))]
        # Children first: the trigger counts at their parents.
        self.db.executemany("DELETE FROM spans WHERE stem = ?", [(s,) for s in reversed(stems)])
        return stems

    def name(self, namespace: str, label: str, identity: str) -> None:
        """What people call the model of a namespace, and which model that is."""
        change = "UPDATE namespaces SET label = ?, identity = ? WHERE name = ?"
        self.db.execute(change, (label, identity, namespace))

    def opened(self, identity: str, label: str) -> None:
        """A process opened the model that people call `label`.

        It came back where another one was opened under that name since it was last opened.
        """
        query = "SELECT identity, opened FROM models WHERE label = ? ORDER BY opened DESC LIMIT 1"
        last, count = self.db.execute(query, (label,)).fetchone() or (identity, 0)
        self.db.execute(
            "INSERT INTO models VALUES (?, ?, ?, 0) ON CONFLICT (identity, label) DO UPDATE"
            " SET opened = excluded.opened, came_back = max(came_back, ?)",
            (identity, label, count + 1, last != identity),
        )

    def superseded(self) -> list[str]:
        """Namespaces of models that nobody can open any more, as far as is known."""
        return [name for (name,) in self.db.execute(_SUPERSEDED, (_ALTERNATING,))]

    def matching(self, model: str | None) -> list[str]:
        """Namespaces of a model (a label, or how a namespace starts), or all."""
        query = """SELECT name FROM namespaces WHERE :model IS NULL OR label = :model
            OR (length(:model) >= 8 AND substr(name, 1, length(:model)) = :model)"""
        return [name for (name,) in self.db.execute(query, {"model": model})]

    def forget_empty(self) -> None:
        """Forget namespaces of which nothing is stored, and models that are long gone."""
        self.db.execute(
            "DELETE FROM namespaces WHERE NOT EXISTS (SELECT 1 FROM spans WHERE namespace = name)"
        )
        self.db.execute(
            "DELETE FROM models AS m WHERE identity NOT IN (SELECT identity FROM namespaces)"
            " AND opened + ? < (SELECT max(opened) FROM models WHERE label = m.label)",
            (_ALTERNATING,),
        )

    def swept(self, now: int) -> None:
        """Remember when the folder was swept."""
        self.db.execute("UPDATE totals SET swept = ?", (now,))

    def wipe(self) -> None:
        """Forget all rows."""
        self.db.execute("DELETE FROM spans")
        self.db.execute("DELETE FROM namespaces")

    def trim_log(self) -> None:
        """Move the log home where it has become long. Not in a transaction."""
        log = self.path.with_name(self.path.name + "-wal")
        with suppress(FileNotFoundError):
            if log.stat().st_size > _LONG_LOG:
                self.db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def is_sound(self) -> bool:
        """Whether SQLite finds nothing wrong with the file, nor we with our counters."""
        (found,) = self.db.execute("PRAGMA quick_check(1)").fetchone()
        return found == "ok" and not list(self.check())

    def shrink(self) -> str:
        """Leave no token in free pages or the log: they are conversation. Not in a transaction.

        Says why something may be left there, or "": another process held the log for too long.
        """
        try:
            self.db.execute("VACUUM")
        except sqlite3.OperationalError as error:
            return str(error)
        # Beside another's checkpoint SQLite gives up at once, without waiting.
        until = time.monotonic() + _BUSY_SECONDS
        while self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            if time.monotonic() > until:
                return "database is locked"
            time.sleep(_POLL_SECONDS)
        return ""

    def check(self) -> Iterator[str]:
        """What is wrong with the index itself, a line each."""
        held = self.db.execute("SELECT count(*), sum(count), sum(bytes) FROM spans").fetchone()
        counted = tuple(value or 0 for value in held)
        if counted != self.totals()[:3]:
            yield f"spans, tokens, bytes are {counted}, the counters say {self.totals()[:3]}"
        query = """SELECT stem, children FROM spans AS s WHERE children !=
            (SELECT count(*) FROM spans WHERE parent = s.stem)"""
        for stem, children in self.db.execute(query):
            yield f"span {stem} is said to have {children} children and has not"
        query = """SELECT stem, parent FROM spans AS s WHERE parent != '' AND NOT EXISTS
            (SELECT 1 FROM spans WHERE stem = s.parent)"""
        for stem, parent in self.db.execute(query):
            yield f"span {stem} hangs on {parent}, which is gone"


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, triggers whole."""
    statement = ""
    for line in script.strip().splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
