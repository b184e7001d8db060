"""Damage: bytes that were seen to differ from those written, reported in one line."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final


class DamagedIndex(sqlite3.DatabaseError):
    """An index with content that we never wrote: it is rebuilt from the spans' files."""


class OtherVersion(DamagedIndex):
    """A whole index, of an older or newer version of ours."""

    def __init__(self, found: int, ours: int) -> None:
        super().__init__(f"it has version {found}, not {ours}")
        self.age = "an older" if found < ours else "a newer"
        self.found = found


def said_of_index(error: Exception) -> str:
    """The fault of an unusable index, to follow "the index" in a line for the user."""
    if isinstance(error, OtherVersion):
        return f"is that of {error.age} version of llm-mlx-promptcache (format {error.found})"
    return f"was damaged ({error})"


# The system's own failures say nothing about a file (SQLite's primary codes).
_SYSTEM: Final = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_ABORT,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOLFS,
}


def is_damage(error: Exception, path: Path) -> bool:
    """True if an error of SQLite's, or ours, shows that the index at `path` is not sound."""
    if isinstance(error, DamagedIndex):
        return True
    code = getattr(error, "sqlite_errorcode", None)
    if not isinstance(error, sqlite3.Error) or code is None:
        return False
    if code == sqlite3.SQLITE_READONLY:  # the file's own word, unless the system agrees
        return os.access(path, os.W_OK)
    return code == sqlite3.SQLITE_IOERR_SHORT_READ or code & 0xFF not in _SYSTEM
