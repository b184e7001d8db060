"""Turns at llm's log: one `llm` of ours writes it at a time.

llm reads and writes in one transaction that begins as a reader's. If two do so at the same time,
SQLite refuses one of them at once, whatever its timeout and its journal, and that answer is not
logged.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from ..config import data_folder

if TYPE_CHECKING:
    from filelock import FileLock

# Seconds to wait for others, each of which takes a few milliseconds; then llm may try without.
_PATIENCE: Final = 10.0


class LogTurn:
    """A turn at the log, from the end of an answer to the end of the command."""

    def __init__(self) -> None:
        self._lock: FileLock | None = None

    def take(self) -> None:
        """Wait for the turn; go on without it where there are no locks, or it takes too long."""
        if self._lock is not None:
            return
        from filelock import FileLock, Timeout

        with suppress(NotImplementedError, OSError, Timeout):
            lock = FileLock(data_folder() / "llm-log.lock", mode=0o600)
            lock.acquire(timeout=_PATIENCE)
            self._lock = lock

    def leave(self) -> None:
        """Let the next one write."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
