"""An index that is new, lost or damaged: made, filled from the files, or put out of the way."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from .files import Files, locked, same_file
from .index import VERSION, Index
from .sweep import rebuild

_log = logging.getLogger(__name__)

_BESIDE = ("-wal", "-shm", "-journal")


def prepare(index: Index, spans: Path, files: Files, tiers: Sequence[str]) -> None:
    """Make an index's tables, and fill them from the files where there are some."""
    with index.transaction():
        if index.version == VERSION:  # another process was faster
            return
        if index.version:
            raise sqlite3.DatabaseError(f"it has version {index.version}, not {VERSION}")
        index.create()
        taken = rebuild(index, spans, files, tiers)
    if taken:
        _log.warning("the index in %s was lost; rebuilt from %d files", spans.parent, taken)


def set_aside(path: Path, aside: Path, error: Exception, wait: bool = True) -> bool:
    """Put a damaged index out of the way; whether that was done, by us or by others.

    Without `wait` it is left to the process that is just doing it.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return True
    with locked(path.parent, wait) as alone:
        if not alone:
            return False
        if not same_file(path, (status.st_dev, status.st_ino)) or _is_whole(path):
            return True  # another process was faster
        _log.warning("the index in %s is damaged and set aside: %s", path.parent, error)
        path.replace(aside)
        for ending in _BESIDE:
            path.with_name(path.name + ending).unlink(missing_ok=True)
    return True


def _is_whole(path: Path) -> bool:
    """Whether an index is one that can be used, and sound."""
    try:
        index = Index(path)
        try:
            return index.version == VERSION and index.is_sound()
        finally:
            index.close()
    except (OSError, sqlite3.Error):
        return False
