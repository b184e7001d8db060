"""The line that tells a user that a model is being fetched, one however many of a process wait."""

from __future__ import annotations

import threading
from weakref import WeakValueDictionary

from ..models.progress import ProgressLine
from .events import Event, Loading

_lines: WeakValueDictionary[str, ProgressLine] = WeakValueDictionary()
_lock = threading.Lock()


class LoadingLine:
    """Progress of a fetch on stderr; all who wait for the model `reference` share one line."""

    def __init__(self, reference: str) -> None:
        with _lock:
            self._line: ProgressLine | None = _lines.setdefault(reference, ProgressLine())

    def show(self, event: Event) -> None:
        """Show the progress; any event but Loading ends the line."""
        if self._line is None:
            return
        if not isinstance(event, Loading):
            self.close()
        elif event.aloud:
            with _lock:
                self._line(event.stage, event.done, event.total)

    def close(self) -> None:
        """Take the line off the terminal; nothing is shown after that."""
        if self._line is not None:
            with _lock:
                self._line.close()
        self._line = None
