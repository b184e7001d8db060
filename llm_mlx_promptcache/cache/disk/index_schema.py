"""The schema of the index, and the checks of a file before it is believed to be one.

SQLite runs a schema's content: views and triggers are code. So a file's schema is compared with
ours, whole, before anything else is read, and every action on it may do only so much work.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from .damage import DamagedIndex, OtherVersion
from .index_rows import MOST_TOKENS

VERSION: Final = 6
_MOST_VERSION: Final = 1 << 10  # more is no number that we ever give
BESIDE: Final = ("-wal", "-shm", "-journal")
_SCHEMA = """
CREATE TABLE namespaces (
    name TEXT PRIMARY KEY,
    layout TEXT NOT NULL,
    label TEXT NOT NULL,
    identity TEXT NOT NULL,
    digest BLOB NOT NULL
);
CREATE TABLE models (
    identity TEXT NOT NULL,
    label TEXT NOT NULL,
    opened INTEGER NOT NULL,
    came_back INTEGER NOT NULL,
    PRIMARY KEY (identity, label)
);
CREATE TABLE spans (
    file_id TEXT PRIMARY KEY,
    namespace TEXT NOT NULL,
    parent TEXT NOT NULL,
    start INTEGER NOT NULL,
    first INTEGER NOT NULL,
    tokens BLOB NOT NULL,
    count INTEGER NOT NULL,
    resumes INTEGER NOT NULL,
    tier INTEGER NOT NULL,
    density_bucket INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    pack TEXT NOT NULL,
    digest BLOB NOT NULL,
    hits INTEGER NOT NULL DEFAULT 0,
    last_use INTEGER NOT NULL,
    used_at INTEGER NOT NULL,
    pinned INTEGER NOT NULL DEFAULT 0,
    children INTEGER NOT NULL DEFAULT 0,
    bucket INTEGER AS ((tier * 2 + (hits > 0)) * 65536 + density_bucket),
    UNIQUE (namespace, parent, start, first)
);
CREATE INDEX by_parent ON spans (parent, start);
CREATE INDEX by_worth ON spans (children, pinned, bucket, last_use, file_id);
CREATE INDEX by_age ON spans (namespace, children, used_at, pinned);
CREATE INDEX by_pack ON spans (pack) WHERE pack != '';
CREATE TABLE packs (
    file_id TEXT PRIMARY KEY,
    bytes INTEGER NOT NULL,
    live INTEGER NOT NULL DEFAULT 0,
    spans INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE totals (
    spans INTEGER, tokens INTEGER, bytes INTEGER, dead INTEGER, tick INTEGER, swept INTEGER,
    proof INTEGER
);
INSERT INTO totals VALUES (0, 0, 0, 0, 0, 0, 0);
CREATE TRIGGER added AFTER INSERT ON spans BEGIN
    UPDATE totals SET spans = spans + 1, tokens = tokens + NEW.count, bytes = bytes + NEW.bytes,
        proof = proof + 3 + 5 * NEW.count + 7 * NEW.bytes;
    UPDATE spans SET children = children + 1 WHERE file_id = NEW.parent;
    UPDATE packs SET live = live + NEW.bytes, spans = spans + 1 WHERE file_id = NEW.pack;
END;
CREATE TRIGGER removed AFTER DELETE ON spans BEGIN
    UPDATE totals SET spans = spans - 1, tokens = tokens - OLD.count, bytes = bytes - OLD.bytes,
        proof = proof - 3 - 5 * OLD.count - 7 * OLD.bytes;
    UPDATE spans SET children = children - 1 WHERE file_id = OLD.parent;
    UPDATE packs SET live = live - OLD.bytes, spans = spans - 1 WHERE file_id = OLD.pack;
END;
CREATE TRIGGER moved AFTER UPDATE OF bytes, pack ON spans BEGIN
    UPDATE totals SET bytes = bytes + NEW.bytes - OLD.bytes,
        proof = proof + 7 * (NEW.bytes - OLD.bytes);
    UPDATE packs SET live = live - OLD.bytes, spans = spans - 1 WHERE file_id = OLD.pack;
    UPDATE packs SET live = live + NEW.bytes, spans = spans + 1 WHERE file_id = NEW.pack;
END;
CREATE TRIGGER pack_added AFTER INSERT ON packs BEGIN
    UPDATE totals SET dead = dead + NEW.bytes, proof = proof + 11 * NEW.bytes;
END;
CREATE TRIGGER pack_removed AFTER DELETE ON packs BEGIN
    UPDATE totals SET dead = dead - OLD.bytes + OLD.live,
        proof = proof - 11 * (OLD.bytes - OLD.live);
END;
CREATE TRIGGER pack_changed AFTER UPDATE OF live ON packs BEGIN
    UPDATE totals SET dead = dead + OLD.live - NEW.live,
        proof = proof + 11 * (OLD.live - NEW.live);
END;
"""
_LIMITS: Final = {
    sqlite3.SQLITE_LIMIT_LENGTH: 4 * MOST_TOKENS + (1 << 20),
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 1 << 16,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 4,
}
# Steps of SQLite's machine: an action takes some hundreds a row, and a row is no shorter than this.
_STEPS_AT_ONCE: Final = 10_000
_LEAST_STEPS: Final = 5_000_000  # a tenth of a second
_STEPS_A_BYTE: Final = 8
_STEPS_A_ROW: Final = 2_000
_STEPS_OF_A_SCHEMA: Final = 1_000  # ours takes some 150


class Connection(sqlite3.Connection):
    """A connection with a limit on SQLite's work for each statement.

    Beyond it SQLite reports "interrupted": a view without end, a tree that hangs on itself.
    """

    size = 0  # the file's bytes: a full read may take as much work as it needs
    _left = 0

    def bound(self) -> None:
        """Count the work of all statements from now on."""
        self.set_progress_handler(self._step, _STEPS_AT_ONCE)

    def execute(self, *statement: Any) -> sqlite3.Cursor:
        """Execute as SQLite does, with the limit counted anew."""
        self._allow(0)
        try:
            return super().execute(*statement)
        except UnicodeDecodeError:  # SQLite's message quotes the schema, and Python can't read it
            raise DamagedIndex("its tables have names that are no UTF-8") from None

    def load_schema(self) -> None:
        """Have SQLite read the schema, in no more work than ours takes: parsing is not counted."""
        self.set_progress_handler(lambda: True, _STEPS_OF_A_SCHEMA)
        try:
            self.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
        finally:
            self.bound()

    def executemany(self, statement: str, rows: Iterable[Any]) -> sqlite3.Cursor:
        """Execute as SQLite does, with the limit counted anew."""
        held = list(rows)
        self._allow(len(held))
        return super().executemany(statement, held)

    def _allow(self, rows: int) -> None:
        steps = _LEAST_STEPS + self.size * _STEPS_A_BYTE + rows * _STEPS_A_ROW
        self._left = steps // _STEPS_AT_ONCE

    def _step(self) -> bool:
        self._left -= 1
        return self._left < 0


def connect(path: Path, busy_seconds: float) -> Connection:
    """A connection to a file that may be anything; it must exist."""
    for name in (path, *(path.with_name(path.name + ending) for ending in BESIDE)):
        _secure(name, must_exist=name is path)
    # SQLite would play it back, and remove the file that it names: an index of ours has a log.
    if os.path.lexists(path.with_name(path.name + "-journal")):
        raise DamagedIndex("a journal lies beside it that is none of ours")
    db: Connection = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode=rw",
        uri=True,
        timeout=busy_seconds,
        check_same_thread=False,
        isolation_level=None,
        factory=Connection,
    )
    try:
        db.text_factory = _text
        for limit, most in _LIMITS.items():
            db.setlimit(limit, most)
        db.bound()
        db.load_schema()
        for setting in ("trusted_schema=OFF", "cell_size_check=ON", "temp_store=MEMORY"):
            db.execute(f"PRAGMA {setting}")
    except BaseException:
        db.close()
        raise
    return db


def create(db: sqlite3.Connection) -> None:
    """Make the tables, inside a transaction of the caller's."""
    # `executescript` would commit the caller's transaction first.
    for statement in _statements(_SCHEMA):
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {VERSION}")


def schema_cookie(db: sqlite3.Connection) -> int:
    """A number that changes when anybody changes the schema."""
    (found,) = db.execute("PRAGMA schema_version").fetchone()
    return int(found)


def verify(db: Connection) -> None:
    """DamagedIndex unless a file's version and schema are ours, to the letter."""
    db.load_schema()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version != VERSION:
        raise _of_version(version)
    if _schema_of(db) != _ours():
        raise DamagedIndex("its tables are not ours")


def _of_version(version: int) -> DamagedIndex:
    """The error for an index of this version, which is not ours."""
    if 0 < version <= _MOST_VERSION:
        return OtherVersion(version, VERSION)
    return DamagedIndex(f"it has version {version}, not {VERSION}")


def _schema_of(db: sqlite3.Connection) -> Counter[Any]:
    query = "SELECT type, name, tbl_name, sql FROM sqlite_master LIMIT 100"
    return Counter(db.execute(query).fetchall())


@cache
def _ours() -> Counter[Any]:
    db = sqlite3.connect(":memory:", isolation_level=None)
    try:
        create(db)
        return _schema_of(db)
    finally:
        db.close()


def _secure(path: Path, *, must_exist: bool) -> None:
    """Ensure that SQLite opens a plain file of ours, for us alone, or makes a new one.

    The folder is its owner's, so nobody can put another one there in between.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        if must_exist:
            raise
        return
    if not stat.S_ISREG(status.st_mode):
        raise DamagedIndex(f"{path.name} is no plain file")
    if status.st_uid != os.geteuid():
        raise DamagedIndex(f"{path.name} belongs to user {status.st_uid}")
    if status.st_mode & 0o177 or not status.st_mode & 0o600:
        path.chmod(0o600)


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise DamagedIndex("it holds text that is no UTF-8") from None


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, triggers whole."""
    statement = ""
    for line in script.strip().splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
