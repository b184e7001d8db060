"""SharedIndex: a folder's index as one process uses it, and what happens when it can't be used.

It may be new, replaced, removed or damaged by anybody at any time, and a fork needs its own. What
fails is a miss (law 7), told once, and tried again later. Lookups have a connection of their own,
which no writer holds up: SQLite's log lets readers go on.
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
from .backoff import Backoff
from .files import Files, is_remote, make_own_folder, same_file
from .index import VERSION, Index

T = TypeVar("T")
_log = logging.getLogger(__name__)

_INDEX: Final = "index.sqlite"
_SET_ASIDE: Final = "index.damaged"
SPANS: Final = "spans"

LOOK_SECONDS: Final = 0.02  # that one look waits for a lock: a lookup takes two
WRITE_SECONDS: Final = 1.0  # that a change waits, once; while the lock is held on, not at all
COMMAND_SECONDS: Final = 5.0  # that who asked for just this waits
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
        self._looking = threading.Lock()
        self._reader: Index | None = None
        self._failing = Backoff(1.0, 60.0, self._files.clock)
        self._locked = Backoff(1.0, 60.0, self._files.clock)
        self._unseen = Backoff(0.25, 10.0, self._files.clock)
        self._told = False

    @property
    def set_aside(self) -> Path:
        """Where a damaged index is put."""
        return self._folder / _SET_ASIDE

    @property
    def off(self) -> bool:
        """Whether the disk can't be used at the moment."""
        return self._failing.pause > 0

    @property
    def locked(self) -> Backoff:
        """The pauses that changes make while another process holds the index."""
        return self._locked

    @property
    def unseen(self) -> bool:
        """Whether the last look was not let in: what is stored is not known then."""
        return self._unseen.active

    def look(self, action: Callable[[Index], T], otherwise: T) -> T:
        """Read from the index, for who can't wait: at most `LOOK_SECONDS` for any lock."""
        if self._process != os.getpid():
            self._after_fork()
        if self._unseen.pause:
            return otherwise
        if not self._looking.acquire(timeout=LOOK_SECONDS):
            self._unseen.failed()
            return otherwise
        try:
            index = self._opened_reader()
            if index is not None:
                with index.snapshot():
                    found = action(index)
                self._unseen.worked()
                return found
        except (OSError, sqlite3.Error) as error:
            if is_busy(error):
                self._unseen.failed()
                return otherwise
            self._close_reader()
        finally:
            self._looking.release()
        # New, lost or damaged: made or mended first, unless another one is just doing that.
        return self._mended(action, otherwise)

    def run(self, action: Callable[[Index], T], otherwise: T, *, asked: bool = False) -> T:
        """Change the index; a disk that fails is left alone for a while, with one warning.

        A lock is waited for once; then there are pauses, in which nothing is tried, but by who
        was `asked` by the user for just this.
        """
        if self._process != os.getpid():
            self._after_fork()
        with self._lock:
            if self.off or (self._locked.pause and not asked):
                return otherwise
            wait = 0.0 if self._locked.active else WRITE_SECONDS
            return self._tried(action, otherwise, COMMAND_SECONDS if asked else wait)

    def can_change(self) -> bool:
        """Whether changes are let in; after a time-out a try that waits for nobody tells."""

        def begin(index: Index) -> bool:
            with index.transaction():
                return True

        return self.run(begin, False) if self._locked.active else not self.off

    def _mended(self, action: Callable[[Index], T], otherwise: T) -> T:
        if not self._lock.acquire(timeout=LOOK_SECONDS):
            self._unseen.failed()
            return otherwise
        try:
            return otherwise if self.off else self._tried(action, otherwise, None)
        finally:
            self._lock.release()

    def _tried(self, action: Callable[[Index], T], otherwise: T, wait: float | None) -> T:
        """What an action comes to; it waits so long for another process, a look (None) hardly."""
        seconds = LOOK_SECONDS if wait is None else wait
        try:
            try:
                return self._done(action, seconds)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                if not self.put_aside(error, wait=wait is not None):
                    raise
                return self._done(action, seconds)
        except (OSError, sqlite3.Error) as error:
            if is_busy(error):
                (self._unseen if wait is None else self._locked).failed()
            elif self._failing.failed():
                _log.warning("the disk cache in %s is off for now: %s", self._folder, error)
            return otherwise

    def _done(self, action: Callable[[Index], T], seconds: float) -> T:
        index = self._open(seconds)
        before = index.transactions
        found = action(index)
        if index.transactions > before:  # to read is no proof that one can write
            self._locked.worked()
            self._failing.worked()
        return found

    def put_aside(self, error: Exception, wait: bool = True) -> bool:
        """Put an index that is not sound out of the way; whether that was done."""
        index, self._index = self._index, None
        if index is not None:
            index.close()
        return repair.set_aside(self._folder / _INDEX, self.set_aside, error, wait)

    def close(self) -> None:
        """Let go of the file; the next action opens it again."""
        with self._looking:
            self._close_reader()
        with self._lock:
            if self._index is not None and self._process == os.getpid():
                self._index.close()
            self._index = None

    def _close_reader(self) -> None:
        index, self._reader = self._reader, None
        if index is not None and self._process == os.getpid():
            index.close()

    def _after_fork(self) -> None:
        """Connections and locks are the parent's: a child that used them would spoil both."""
        _left_to_parent.extend(i for i in (self._index, self._reader) if i is not None)
        self._start()

    def _opened_reader(self) -> Index | None:
        """The connection of lookups; None where the index is not there yet, or not ours."""
        index = self._reader
        if index is not None and not same_file(index.path, index.inode):
            self._close_reader()  # set aside or removed by another process
        if self._reader is None:
            self._prepare_folder()
            path = self._folder / _INDEX
            if not path.exists():
                return None
            index = Index(path, LOOK_SECONDS)
            if index.version != VERSION:
                index.close()
                return None
            self._reader = index
        return self._reader

    def _open(self, wait: float) -> Index:
        index = self._index
        if index is not None and not same_file(index.path, index.inode):
            index.close()  # set aside or removed by another process
            index = None
        if index is None:
            self._prepare_folder()
            index = Index(self._folder / _INDEX, wait)
            if index.version != VERSION:
                repair.prepare(index, self._folder / SPANS, self._files, self._tiers)
            self._index = index
        index.wait_for_locks(wait)
        return index

    def _prepare_folder(self) -> None:
        make_own_folder(self._folder, through_link=True)
        make_own_folder(self._folder / SPANS)
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
