"""Faults of a folder's files: their consequences, each reported once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..span import DamagedEnds, DamagedSpan
from .backoff import Backoff

if TYPE_CHECKING:
    from ..span import StoredSpan
    from .folder import StoreFolder
    from .notes import Notes

_log = logging.getLogger(__name__)


class Faults:
    """The faults of one process's reads and writes in a folder; any thread may report one."""

    def __init__(self, folder: StoreFolder, notes: Notes) -> None:
        self._folder = folder
        self._notes = notes
        self._writing = Backoff(1.0, 60.0, folder.files.clock)
        self._told_unreadable = False

    def damaged(self, span: StoredSpan, error: DamagedSpan) -> None:
        """Remove a span that was found damaged, with all that hangs on it.

        If only its states and windows are, they alone go; a checkpoint has nothing else.
        """
        if isinstance(error, DamagedEnds) and span.start < span.end:
            _log.warning("the states and windows of a stored span are left out: %s", error)
            self._notes.lose_ends(span.file_id)
            return
        _log.warning("a stored span is left out: %s", error)
        self._notes.lose(span.file_id, span.pack)

    def unreadable(self, error: Exception) -> None:
        """Report once that something could not be read, by no fault of its own: it stays."""
        if not self._told_unreadable:
            self._told_unreadable = True
            _log.warning(
                "the disk cache in %s can't be read just now, and nothing is lost: %s",
                self._folder.path,
                error or type(error).__name__,
            )

    @property
    def pause(self) -> float:
        """Seconds for which no file is written, since the last one could not be; mostly 0."""
        return self._writing.pause

    def unwritable(self, error: OSError) -> None:
        """Pause writing, since a file could not be written; reported once until one was."""
        if self._writing.failed():
            _log.warning(
                "nothing is written to the disk cache in %s for now: %s",
                self._folder.path,
                error,
                extra={"holds": lambda: self._writing.active},
            )

    def written(self) -> None:
        """End the pause, since a file was written."""
        self._writing.worked()
