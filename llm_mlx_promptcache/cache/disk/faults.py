"""What went wrong with a folder's files: what that means for them, and each told once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .backoff import Backoff

if TYPE_CHECKING:
    from ..span import DamagedSpan, StoredSpan
    from .folder import StoreFolder
    from .notes import Notes

_log = logging.getLogger(__name__)


class Faults:
    """The faults of one process's reads and writes in a folder; any thread may tell one."""

    def __init__(self, folder: StoreFolder, notes: Notes) -> None:
        self._folder = folder
        self._notes = notes
        self._writing = Backoff(1.0, 60.0, folder.files.clock)
        self._told_unreadable = False

    def damaged(self, span: StoredSpan, error: DamagedSpan) -> None:
        """A span was seen not to be what was written: it is removed, with all that hangs on it."""
        _log.warning("a stored span is left out: %s", error)
        self._notes.lose(span.file_id, span.pack)

    def unreadable(self, error: Exception) -> None:
        """Something could not be read, by no fault of its own: it stays, and is told once."""
        if not self._told_unreadable:
            self._told_unreadable = True
            _log.warning(
                "what is stored in %s can't be read just now, and nothing is lost: %s",
                self._folder.path,
                error or type(error).__name__,
            )

    @property
    def pause(self) -> float:
        """Seconds for which no file is written, since the last one could not be; mostly 0."""
        return self._writing.pause

    def unwritable(self, error: OSError) -> None:
        """A file could not be written: none is for a while, told once until one was."""
        if self._writing.failed():
            _log.warning(
                "nothing is written to the disk cache in %s for now: %s",
                self._folder.path,
                error,
                extra={"holds": lambda: self._writing.active},
            )

    def written(self) -> None:
        """A file was written: whatever was in the way is over."""
        self._writing.worked()
