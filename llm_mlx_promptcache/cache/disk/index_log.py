"""SQLite's log beside the index: its content is not in the file yet, tokens included.

It is emptied into the file when it has become long, and when no token may be left anywhere.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Final

_LONG: Final = 4 << 20  # bytes
_BUSY_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.01


class IndexLog:
    """The log of the index at `path`, by an index's connection; never inside a transaction."""

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db = db
        self._index = path
        self._path = path.with_name(path.name + "-wal")

    def begin(self) -> None:
        """Have SQLite keep one, as we want it."""
        self._db.execute("PRAGMA journal_mode=WAL")
        # SQLite would checkpoint its log inside somebody's insert, and wait for the disk there.
        self._db.execute("PRAGMA wal_autocheckpoint=0")
        # One that became long is cut when it begins anew, or it would be long for ever.
        self._db.execute(f"PRAGMA journal_size_limit={_LONG}")

    @property
    def index_bytes(self) -> int:
        """Bytes of the index and its log together."""
        return _size(self._index) + _size(self._path)

    @property
    def is_long(self) -> bool:
        """True if it is time for a checkpoint."""
        return _size(self._path) > _LONG

    def trim(self) -> None:
        """Checkpoint it if it has become long."""
        if self.is_long:
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def shrink(self) -> str:
        """Leave no token in it or in the index's free pages: they are conversation.

        Returns the reason why some may be left, or "": another process held the log for too long.
        """
        try:
            self._db.execute("VACUUM")
        except sqlite3.OperationalError as error:
            return str(error)
        return self.empty()

    def empty(self) -> str:
        """Checkpoint and empty it; returns "", or the obstacle."""
        # Beside another's checkpoint SQLite gives up at once, without waiting.
        until = time.monotonic() + _BUSY_SECONDS
        while self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            if time.monotonic() > until:
                return "database is locked"
            time.sleep(_POLL_SECONDS)
        return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
