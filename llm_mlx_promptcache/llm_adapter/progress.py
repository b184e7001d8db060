"""What a user waits for, on a terminal, until the answer begins."""

from __future__ import annotations

import sys
import time

from ..engine.events import Event, Progress
from ..models.progress import ProgressLine


class WaitingLine:
    """That a model loads, then a prompt's tokens: done, from the cache, a second; quiet in a pipe.

    `loading` names a model that is still to be loaded.
    """

    def __init__(self, loading: str = "") -> None:
        self._line = ProgressLine() if sys.stderr.isatty() else None
        self._first: tuple[float, int] | None = None
        if loading:
            self._show(f"loading {loading}")

    def close(self) -> None:
        """Take the line off the terminal; nothing is shown after that."""
        if self._line is not None:
            self._line.close()
        self._line = None

    def _show(self, stage: str) -> None:
        if self._line is not None:
            self._line(stage, 0, 0)

    def show(self, event: Event) -> None:
        """Show where a prompt is that is not done yet; anything else ends the line."""
        if self._line is None:
            return
        if not isinstance(event, Progress) or event.done >= event.total - 1:
            self.close()
            return
        now = time.monotonic()
        since, done = self._first = self._first or (now, event.done)
        stage = f"prompt: {event.done} of {event.total} tokens, {event.cached} from the cache"
        if now > since:
            stage += f", {(event.done - done) / (now - since):.0f}/s"
        self._show(stage)
