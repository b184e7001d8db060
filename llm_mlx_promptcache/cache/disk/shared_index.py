"""SharedIndex: a folder's index as one process uses it, and its failures.

It may be new, replaced, removed or damaged by anybody at any time, and a fork needs its own. A
failure is a miss (law 7), reported once, and retried later. Lookups have a connection of their own,
which no writer holds up: SQLite's log lets readers go on.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from . import repair
from .backoff import Backoff
from .damage import is_damage, said_of_index
from .files import is_remote, make_own_folder, same_file
from .folder import StoreFolder
from .index import Index
from .marks import mark_as_cache
from .pins import Pins

T = TypeVar("T")
_log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.02  # that one look waits for a lock: a lookup takes two
PEEK_SECONDS: Final = 0.005  # that a guess waits for a look of another thread, and for no process
WRITE_SECONDS: Final = 1.0  # that a change waits, once; while the lock is held on, not at all
PRESSED_SECONDS: Final = 0.2  # that it waits then where a flush waits for it: others take turns
COMMAND_SECONDS: Final = 5.0  # that who asked for just this waits
_TRIES: Final = 3
_MENDS: Final = 3  # of one process in so many seconds: then something damages it on and on
_MEND_SECONDS: Final = 3600.0
# Opened before a fork: closing them in the child could spoil the parent's log.
_left_to_parent: list[Index] = []


class SharedIndex:
    """The index of `folder`, opened when it is needed; threads take turns."""

    def __init__(self, folder: StoreFolder, pins: Pins) -> None:
        self._folder = folder
        self.pins = pins
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._index: Index | None = None
        self._looking = threading.Lock()
        self._reader: Index | None = None
        self._failing = Backoff(1.0, 60.0, self._folder.files.clock)
        self._locked = Backoff(1.0, 60.0, self._folder.files.clock)
        self._unseen = Backoff(0.25, 10.0, self._folder.files.clock)
        self._told = False
        self._mending: repair.Mending | None = None
        self._damage: list[float] = []  # when an index was made anew
        self.mended: list[str] = []  # and why

    @property
    def off(self) -> bool:
        """True if the disk can't be used at the moment."""
        return self._failing.pause > 0

    @property
    def locked(self) -> Backoff:
        """The pauses that changes make while another process holds the index."""
        return self._locked

    @property
    def unseen(self) -> bool:
        """True if the last look was not let in: the stored spans are unknown then."""
        return self._unseen.active

    def look(self, action: Callable[[Index], T], otherwise: T) -> T:
        """Read from the index without waiting: at most `LOOK_SECONDS` for locks and mending.

        All waits of one look together; a lookup takes two.
        """
        if self._process != os.getpid():
            self._after_fork()
        if self._unseen.pause and not self._is_mended:
            return otherwise
        until = time.monotonic() + LOOK_SECONDS
        if not self._looking.acquire(timeout=LOOK_SECONDS):
            self._unseen.failed()
            return otherwise
        try:
            index = self._opened_reader(_left(until))
            if index is not None:
                with index.snapshot():
                    index.look_at_schema()
                    found = action(index)
                self._unseen.worked()
                return found
            if not self._folder.names():  # new: there is nothing to see
                self._unseen.worked()
                return otherwise
        except (OSError, sqlite3.Error) as error:
            if is_busy(error):
                self._unseen.failed()
                return otherwise
            self._close_reader()
        finally:
            self._looking.release()
        # New, lost or damaged: made or mended first, unless another one is just doing that.
        return self._mended(action, otherwise, until)

    def peek(self, action: Callable[[Index], T], otherwise: T) -> T:
        """Read what lookups have open already, at once or not at all: for guesses.

        Waits for no other process, opens and mends nothing, and reports no failure to lookups.
        """
        if self._process != os.getpid() or not self._looking.acquire(timeout=PEEK_SECONDS):
            return otherwise
        try:
            index = self._reader
            if index is None or self._unseen.pause or not same_file(index.path, index.inode):
                return otherwise
            index.wait_for_locks(0.0)
            with index.snapshot():
                index.look_at_schema()
                return action(index)
        except (OSError, sqlite3.Error):
            return otherwise
        finally:
            self._looking.release()

    @property
    def _is_mended(self) -> bool:
        """True if mending that a look did not wait for is done."""
        mending = self._mending
        return mending is not None and not mending.is_alive()

    def run(self, action: Callable[[Index], T], otherwise: T, *, asked: bool = False) -> T:
        """Change the index; a disk that fails is left alone for a while, with one warning.

        A lock is waited for once; then there are pauses, in which nothing is tried, except for
        changes that the user `asked` for.
        """
        if self._process != os.getpid():
            self._after_fork()
        with self._lock:
            if self.off or (self._locked.pause and not asked):
                return otherwise
            wait = WRITE_SECONDS
            if self._locked.active:
                wait = PRESSED_SECONDS if self._locked.pressed else 0.0
            return self._tried(action, otherwise, COMMAND_SECONDS if asked else wait)

    def can_change(self) -> bool:
        """True if changes are let in; after a time-out this tries without waiting."""

        def begin(index: Index) -> bool:
            with index.transaction():
                return True

        return self.run(begin, otherwise=False) if self._locked.active else not self.off

    def _mended(self, action: Callable[[Index], T], otherwise: T, until: float) -> T:
        if not self._lock.acquire(timeout=_left(until)):
            self._unseen.failed()
            return otherwise
        try:
            return otherwise if self.off else self._tried(action, otherwise, None, until)
        finally:
            self._lock.release()

    def _tried(
        self, action: Callable[[Index], T], otherwise: T, wait: float | None, until: float = 0.0
    ) -> T:
        """The result of an action; it waits so long for another process, a look only `until`."""
        for _ in range(_TRIES):
            seconds = _left(until) if wait is None else wait
            try:
                return self._done(action, seconds)
            except (OSError, sqlite3.Error) as error:
                if is_busy(error):
                    (self._unseen if wait is None else self._locked).failed()
                    return otherwise
                if not self._can_go_on(error, seconds):
                    return otherwise
        return otherwise

    def _can_go_on(self, error: Exception, seconds: float) -> bool:
        """True if the failure is mended now, so that a retry makes sense."""
        index = self._index
        if index is not None and not same_file(index.path, index.inode):
            self._close_index()  # another process has mended it, or removed it
            return True
        try:
            if is_damage(error, self._folder.index):
                return self._mend(error, seconds)
        except (OSError, sqlite3.Error) as failure:
            error = failure
        if self._failing.failed():
            _log.warning(
                "the disk cache in %s is off for now: %s",
                self._folder.path,
                error,
                extra={"holds": lambda: self._failing.active},
            )
        return False

    def _done(self, action: Callable[[Index], T], seconds: float) -> T:
        index = self._open(seconds)
        before = index.transactions
        found = action(index)
        if index.transactions > before:  # reading does not prove that writing works
            self._locked.worked()
            self._failing.worked()
        return found

    def put_aside(self, error: Exception) -> None:
        """Have a new index made in place of one that is not sound."""
        with self._lock:
            try:
                self._mend(error, COMMAND_SECONDS)
            except (OSError, sqlite3.Error) as failure:
                _log.warning("the index in %s can't be mended: %s", self._folder.path, failure)

    def _mend(self, why: Exception | None, seconds: float) -> bool:
        """True if there is an index now; raises the error if none can be made, or none lasts.

        It is made in a thread: callers that can't wait miss meanwhile.
        """
        if self._mending is None:
            self._close_index()
            if why is not None:
                self._count_damage(why)
            inode = None if why is None else repair.inode_of(self._folder.index)
            self._mending = repair.Mending(self._folder, self.pins, inode, why)
            self._mending.start()
        mending = self._mending
        done = True
        try:
            done = mending.finished(seconds)
        finally:
            if done:
                self._mending = None
                self._unseen.try_again()  # mending that looks did not wait for
        if not done:
            (self._unseen if seconds <= LOOK_SECONDS else self._locked).failed()
        return done

    def _count_damage(self, why: Exception) -> None:
        now = self._folder.files.clock()
        self._damage = [at for at in self._damage if now - at < _MEND_SECONDS]
        if len(self._damage) >= _MENDS:
            raise OSError(f"its index is damaged again and again: {why}")
        self._damage.append(now)
        self.mended.append(f"the index {said_of_index(why)} and is made anew")

    def close(self) -> None:
        """Close the file; the next action opens it again."""
        with self._looking:
            self._close_reader()
        with self._lock:
            self._close_index()

    def _close_index(self) -> None:
        index, self._index = self._index, None
        if index is not None and self._process == os.getpid():
            index.close()

    def _close_reader(self) -> None:
        index, self._reader = self._reader, None
        if index is not None and self._process == os.getpid():
            index.close()

    def _after_fork(self) -> None:
        """Drop the parent's connections and locks: a child that used them would spoil both."""
        _left_to_parent.extend(i for i in (self._index, self._reader) if i is not None)
        self._start()

    def _opened_reader(self, wait: float) -> Index | None:
        """The connection of lookups; None if the index is not there yet, or not ours."""
        index = self._reader
        if index is not None and not same_file(index.path, index.inode):
            self._close_reader()  # set aside or removed by another process
        if self._reader is None:
            self._prepare_folder()
            try:
                self._reader = Index(self._folder.index, wait)
            except FileNotFoundError:
                return None
        self._reader.wait_for_locks(wait)
        return self._reader

    def _open(self, wait: float) -> Index:
        index = self._index
        if index is not None and not same_file(index.path, index.inode):
            self._close_index()  # set aside or removed by another process
        if self._index is None:
            self._prepare_folder()
            try:
                self._index = Index(self._folder.index, wait)
            except FileNotFoundError:
                if not self._mend(None, wait):
                    raise sqlite3.OperationalError("its index is being made: locked") from None
                self._index = Index(self._folder.index, wait)
            mark_as_cache(self._folder.path)
        self._index.wait_for_locks(wait)
        self._index.look_at_schema()
        return self._index

    def _prepare_folder(self) -> None:
        make_own_folder(self._folder.path, through_link=True)
        make_own_folder(self._folder.spans)
        found = "" if self._told else self._folder.files.file_system(self._folder.path)
        self._told = True
        if is_remote(found):
            _log.warning(
                "the disk cache in %s lies on a network file system (%s), which SQLite's locks do"
                " not suit: what is read is verified, but move it to a local disk",
                self._folder.path,
                found,
                extra={"holds": lambda: self._told},
            )


def _left(until: float) -> float:
    """Seconds until then, in whole milliseconds, as SQLite counts them."""
    return max(0, round((until - time.monotonic()) * 1000)) / 1000


def is_busy(error: Any) -> bool:
    """True if another process has the index locked for longer than we wait."""
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)
