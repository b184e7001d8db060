"""SharedIndex: a folder's index as one process uses it, and what happens when it can't be used.

It may be new, replaced, removed or damaged by anybody at any time, and a fork needs its own. What
fails is a miss (law 7): the disk is off for the process, with one warning.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from . import repair
from .files import Files, is_remote, make_own_folder, same_file
from .index import VERSION, Index

T = TypeVar("T")
_log = logging.getLogger(__name__)

_INDEX: Final = "index.sqlite"
_SET_ASIDE: Final = "index.damaged"
SPANS: Final = "spans"
# Opened before a fork: closing them in the child could spoil the parent's log.
_left_to_parent: list[Index] = []


class SharedIndex:
    """The index of `folder`, opened when it is needed; threads take turns."""

    def __init__(self, folder: Path, files: Files, tiers: Sequence[str]) -> None:
        self._folder = folder
        self._files = files
        self._tiers = tuple(tiers)
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._index: Index | None = None
        self.off = False
        self._told = False

    @property
    def set_aside(self) -> Path:
        """Where a damaged index is put."""
        return self._folder / _SET_ASIDE

    def run(self, action: Callable[[Index], T], otherwise: T) -> T:
        """Run an action on the index; a disk that fails is switched off, with one warning."""
        if self._process != os.getpid():
            self._after_fork()
        with self._lock:
            if self.off:
                return otherwise
            try:
                try:
                    return action(self._open())
                except sqlite3.DatabaseError as error:
                    if is_busy(error):
                        return otherwise  # a miss now, and no reason to be off for good
                    if isinstance(error, sqlite3.OperationalError) or not self.put_aside(error):
                        raise
                    return action(self._open())
            except (OSError, sqlite3.Error) as error:
                self.off = True
                _log.warning(
                    "the disk cache in %s is off for this process: %s", self._folder, error
                )
                return otherwise

    def put_aside(self, error: Exception) -> bool:
        """Put an index that is not sound out of the way; whether that was done."""
        index, self._index = self._index, None
        if index is not None:
            index.close()
        return repair.set_aside(self._folder / _INDEX, self.set_aside, error)

    def close(self) -> None:
        """Let go of the file; the next action opens it again."""
        with self._lock:
            if self._index is not None and self._process == os.getpid():
                self._index.close()
            self._index = None

    def _after_fork(self) -> None:
        """Connections and locks are the parent's: a child that used them would spoil both."""
        if self._index is not None:
            _left_to_parent.append(self._index)
        self._start()

    def _open(self) -> Index:
        index = self._index
        if index is not None and not same_file(index.path, index.inode):
            index.close()  # set aside or removed by another process
            index = None
        if index is None:
            make_own_folder(self._folder, through_link=True)
            make_own_folder(self._folder / SPANS)
            self._check_file_system()
            index = Index(self._folder / _INDEX)
            if index.version != VERSION:
                repair.prepare(index, self._folder / SPANS, self._files, self._tiers)
            self._index = index
        return index

    def _check_file_system(self) -> None:
        found = "" if self._told else self._files.file_system(self._folder)
        self._told = True
        if is_remote(found):
            _log.warning(
                "the disk cache in %s lies on a network file system (%s), which SQLite's locks do"
                " not suit: what is read is verified, but move it to a local disk",
                self._folder,
                found,
            )


def is_busy(error: Any) -> bool:
    """Whether another process has the index locked for longer than we wait."""
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)
