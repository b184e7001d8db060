"""DiskStore: spans as files with an SQLite index beside them; NullStore: the same, kept nowhere.

A stored span hangs on its parent at any token, not only at the parent's end, so a path that
leaves another in the middle of a file needs no rewriting: files and rows never change. Below a
parent that matches up to token m, only a child that starts at m can go on.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from .layer_kinds import Piece
from .layers import Layout, layout_from_json, layout_to_json
from .sizes import parse_size
from .span_file import SUFFIX, TEMPORARY, DamagedSpan, SpanFile, read_span, write_span
from .trie import Tokens, common_prefix

T = TypeVar("T")
_log = logging.getLogger(__name__)

_INDEX = "index.sqlite"
_SPANS = "spans"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS namespaces (name TEXT PRIMARY KEY, layout TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS spans (
    stem TEXT PRIMARY KEY,
    namespace TEXT NOT NULL,
    parent TEXT NOT NULL,
    start INTEGER NOT NULL,
    first INTEGER NOT NULL,
    tokens BLOB NOT NULL,
    tier TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    hits INTEGER NOT NULL DEFAULT 0,
    last_use INTEGER NOT NULL,
    UNIQUE (namespace, parent, start, first)
);
CREATE INDEX IF NOT EXISTS by_parent ON spans (parent);
CREATE INDEX IF NOT EXISTS by_use ON spans (last_use);
"""
_LEAST_USED_LEAF = """
SELECT stem, bytes FROM spans AS s
WHERE NOT EXISTS (SELECT 1 FROM spans AS child WHERE child.parent = s.stem)
ORDER BY last_use, stem LIMIT 1
"""
# Another process may have evicted the parent since it was looked up.
_INSERT = """
INSERT OR IGNORE INTO spans (stem, namespace, parent, start, first, tokens, tier, bytes, last_use)
SELECT :stem, :namespace, :parent, :start, :first, :tokens, :tier, :bytes,
    (SELECT coalesce(max(last_use), 0) + 1 FROM spans)
WHERE :parent = '' OR EXISTS (SELECT 1 FROM spans WHERE stem = :parent)
"""
_TOUCH = """
UPDATE spans SET hits = hits + 1, last_use = (SELECT max(last_use) + 1 FROM spans) WHERE stem = ?
"""
_SUBTREE = """
WITH RECURSIVE below (stem) AS (
    SELECT stem FROM spans WHERE stem = ?
    UNION SELECT s.stem FROM spans AS s JOIN below ON s.parent = below.stem
)
SELECT stem FROM below
"""


class StoredSpan(NamedTuple):
    """A row of the index: its file's tokens start at `start`; the path follows them to `end`."""

    stem: str
    start: int
    end: int


class Store(Protocol):
    """Where spans outlive the process."""

    def layout(self, namespace: str) -> Layout | None:
        """The kinds of layer that a namespace's spans hold, where it has any."""

    def lookup(self, namespace: str, tokens: Tokens[int]) -> list[StoredSpan]:
        """The stored spans along `tokens`, without gaps, from the path's start."""

    def read(self, namespace: str, span: StoredSpan) -> SpanFile | None:
        """A span's content, verified; None where it is gone or damaged."""

    def save(
        self,
        namespace: str,
        layout: Layout,
        tokens: Tokens[int],
        start: int,
        tier: str,
        pieces: Sequence[Piece | None],
    ) -> bool:
        """Store the span [start, len(tokens)) of a path that is stored up to `start`."""

    def stats(self) -> dict[str, int]:
        """Spans, tokens and bytes held, bytes written by this process, and the budget."""

    def clear(self) -> int:
        """Remove everything that was stored; returns the bytes freed."""


class NullStore:
    """Stores nothing: the off switch."""

    def layout(self, namespace: str) -> Layout | None:
        """Nothing is known of any namespace."""
        return None

    def lookup(self, namespace: str, tokens: Tokens[int]) -> list[StoredSpan]:
        """Nothing is found."""
        return []

    def read(self, namespace: str, span: StoredSpan) -> SpanFile | None:
        """Nothing is read."""
        return None

    def save(
        self,
        namespace: str,
        layout: Layout,
        tokens: Tokens[int],
        start: int,
        tier: str,
        pieces: Sequence[Piece | None],
    ) -> bool:
        """Nothing is written."""
        return False

    def stats(self) -> dict[str, int]:
        """All zero."""
        return dict.fromkeys(("spans", "tokens", "bytes", "written", "budget"), 0)

    def clear(self) -> int:
        """Nothing is there."""
        return 0


class DiskStore:
    """Spans in a folder that several processes share; whatever fails here is a miss (law 7)."""

    def __init__(self, folder: str | Path, max_bytes: int | str = "20GB") -> None:
        self.folder = Path(folder)
        self._max_bytes = parse_size(max_bytes, "max_bytes")
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._off = False
        self._written = 0

    @property
    def spans_folder(self) -> Path:
        """Where the spans' files lie."""
        return self.folder / _SPANS

    def layout(self, namespace: str) -> Layout | None:
        """The kinds of layer that a namespace's spans hold, where it has any."""
        query = "SELECT layout FROM namespaces WHERE name = ?"
        row = self._guarded(lambda db: db.execute(query, (namespace,)).fetchone(), None)
        return layout_from_json(json.loads(row[0])) if row is not None else None

    def lookup(self, namespace: str, tokens: Tokens[int]) -> list[StoredSpan]:
        """The stored spans along `tokens`, without gaps, from the path's start."""
        return self._guarded(lambda db: self._walk(db, namespace, tokens), [])

    def read(self, namespace: str, span: StoredSpan) -> SpanFile | None:
        """A span's content, verified; None where it is gone or damaged (its row goes too)."""
        try:
            read = read_span(self._path(span.stem))
            if read.namespace != namespace or read.start != span.start:
                raise DamagedSpan(f"{span.stem} is not the span that its row says")
        except (OSError, DamagedSpan) as error:
            _log.warning("a stored span is left out: %s", error)
            self._guarded(lambda db: self._drop(db, span.stem), None)
            return None
        self._guarded(lambda db: self._touch(db, span.stem), None)
        return read

    def save(
        self,
        namespace: str,
        layout: Layout,
        tokens: Tokens[int],
        start: int,
        tier: str,
        pieces: Sequence[Piece | None],
    ) -> bool:
        """Store the span [start, len(tokens)) of a path that is stored up to `start`."""

        def write(db: sqlite3.Connection) -> bool:
            path = self._walk(db, namespace, tokens)
            stored = path[-1].end if path else 0
            if stored != start:
                return False
            parent = path[-1].stem if path else ""
            content = SpanFile(namespace, parent, start, tier, layout, tokens[start:], list(pieces))
            stem, size = write_span(self.spans_folder, content)
            added = self._add(db, stem, size, content)
            if not added:  # another process stored the same meanwhile: its file stays, ours goes
                self._path(stem).unlink()
            self._written += size
            return added

        return self._guarded(write, False)

    def stats(self) -> dict[str, int]:
        """Spans, tokens and bytes held, bytes written by this process, and the budget."""
        query = "SELECT count(*), sum(length(tokens) / 4), sum(bytes) FROM spans"
        held = self._guarded(lambda db: db.execute(query).fetchone(), (0, 0, 0))
        names = ("spans", "tokens", "bytes", "written", "budget")
        values = [value or 0 for value in (*held, self._written, self._max_bytes)]
        return dict(zip(names, values, strict=True))

    def check(self) -> list[str]:
        """What is wrong, a line each: rows without a file, files without a row, damage (law 3)."""
        query = "SELECT stem, parent FROM spans"
        none: list[tuple[str, str]] = []
        rows = self._guarded(lambda db: db.execute(query).fetchall(), none)
        stems = {stem for stem, _ in rows}
        found = [f"span {s} hangs on {p}, which is gone" for s, p in rows if p and p not in stems]
        files = {path.stem for path in self.spans_folder.glob("*" + SUFFIX)}
        found += [f"span {stem} has a row and no file" for stem in sorted(stems - files)]
        found += [f"span {stem} has a file and no row" for stem in sorted(files - stems)]
        for stem in sorted(files & stems):
            try:
                read_span(self._path(stem))
            except (OSError, DamagedSpan) as error:
                found.append(f"span {stem} can't be read: {error}")
        return found

    def clear(self) -> int:
        """Remove every span; returns the bytes freed. Foreign files stay."""

        def wipe(db: sqlite3.Connection) -> int:
            freed = 0
            with _transaction(db):
                db.execute("DELETE FROM spans")
                db.execute("DELETE FROM namespaces")
            spans = self.spans_folder
            for path in [*spans.glob("*" + SUFFIX), *spans.glob(TEMPORARY + "*")]:
                with suppress(FileNotFoundError):
                    freed += path.stat().st_size
                    path.unlink()
            db.execute("VACUUM")  # tokens are conversation: they must not stay in free pages
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return freed

        return self._guarded(wipe, 0) if self.folder.exists() else 0

    def _path(self, stem: str) -> Path:
        return self.spans_folder / (stem + SUFFIX)

    def _guarded(self, action: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """Run an action on the index; a disk that fails is switched off, with one warning."""
        with self._lock:
            if self._off:
                return otherwise
            try:
                return action(self._open())
            except (OSError, sqlite3.Error) as error:
                self._off = True
                _log.warning("the disk cache in %s is off for this process: %s", self.folder, error)
                return otherwise

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            for folder in (self.folder, self.spans_folder):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                folder.chmod(0o700)
            index = self.folder / _INDEX
            # SQLite would make it with the umask's mode; its -wal and -shm copy the mode found.
            os.close(os.open(index, os.O_CREAT | os.O_RDWR, 0o600))
            db = sqlite3.connect(index, timeout=10, check_same_thread=False, isolation_level=None)
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute("PRAGMA secure_delete=ON")
            db.executescript(_SCHEMA)
            self._connection = db
        return self._connection

    def _walk(
        self, db: sqlite3.Connection, namespace: str, tokens: Tokens[int]
    ) -> list[StoredSpan]:
        query = (
            "SELECT stem, tokens FROM spans"
            " WHERE namespace = ? AND parent = ? AND start = ? AND first = ?"
        )
        path: list[StoredSpan] = []
        stem, end = "", 0
        while end < len(tokens):
            row = db.execute(query, (namespace, stem, end, tokens[end])).fetchone()
            if row is None:
                break
            stored = array("I")
            stored.frombytes(row[1])
            same = common_prefix(stored, tokens, 0, end)
            path.append(StoredSpan(row[0], end, end + same))
            stem, end = row[0], end + same
        return path

    def _add(self, db: sqlite3.Connection, stem: str, size: int, span: SpanFile) -> bool:
        layout = json.dumps(layout_to_json(span.layout))
        with _transaction(db):
            db.execute("INSERT OR IGNORE INTO namespaces VALUES (?, ?)", (span.namespace, layout))
            row = db.execute(
                _INSERT,
                {
                    "stem": stem,
                    "namespace": span.namespace,
                    "parent": span.parent,
                    "start": span.start,
                    "first": span.tokens[0],
                    "tokens": span.tokens.tobytes(),
                    "tier": span.tier,
                    "bytes": size,
                },
            )
            added = row.rowcount == 1
        self._evict(db)
        return added

    def _evict(self, db: sqlite3.Connection) -> None:
        """Leaves go, least recently used first, until the folder is within its budget."""
        (held,) = db.execute("SELECT coalesce(sum(bytes), 0) FROM spans").fetchone()
        while held > self._max_bytes:
            row = db.execute(_LEAST_USED_LEAF).fetchone()
            if row is None:
                break
            self._drop(db, row[0])
            held -= row[1]

    def _touch(self, db: sqlite3.Connection, stem: str) -> None:
        with _transaction(db):
            db.execute(_TOUCH, (stem,))

    def _drop(self, db: sqlite3.Connection, stem: str) -> None:
        """Remove a span and what hangs on it: rows first, so that nobody looks for the files."""
        with _transaction(db):
            stems = [row[0] for row in db.execute(_SUBTREE, (stem,))]
            db.executemany("DELETE FROM spans WHERE stem = ?", [(s,) for s in stems])
        for gone in stems:
            with suppress(FileNotFoundError):
                self._path(gone).unlink()


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """One writer at a time across processes; all of it or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")
