"""Progress on a terminal, until the answer begins."""

from __future__ import annotations

import sys
import time

from ..engine.events import Event, Loading, Progress
from ..models.progress import ProgressLine


class WaitingLine:
    """A line that shows a model loading, then a prompt's tokens: done, from the cache, a second.

    In a pipe only stages that are `aloud`: a model being fetched.
    """

    def __init__(self) -> None:
        self._line: ProgressLine | None = ProgressLine()
        self._on_terminal = sys.stderr.isatty()
        self._first: tuple[float, int] | None = None

    def close(self) -> None:
        """Take the line off the terminal; nothing is shown after that."""
        if self._line is not None:
            self._line.close()
        self._line = None

    def show(self, event: Event) -> None:
        """Show an unfinished load or prompt; any other event ends the line."""
        if self._line is None:
            return
        if isinstance(event, Loading):
            if self._on_terminal or event.aloud:
                self._line(event.stage, event.done, event.total)
        elif isinstance(event, Progress) and event.done < event.total - 1:
            if self._on_terminal:
                self._line(self._prompt(event), 0, 0)
        else:
            self.close()

    def _prompt(self, event: Progress) -> str:
        now = time.monotonic()
        since, done = self._first = self._first or (now, event.done)
        stage = f"prompt: {event.done} of {event.total} tokens, {event.cached} from the cache"
        if now > since:
            stage += f", {(event.done - done) / (now - since):.0f}/s"
        return stage
