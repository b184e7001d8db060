"""Stop strings: found across tokens, and never shown, not even their first characters."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """A filter that passes text on until one of `stops` appears in it.

    `hit` says that one did, `stopped_by` which. Text that might begin a stop string waits
    until the next piece decides.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._waiting = ""
        self.hit = False
        self.stopped_by = ""

    def feed(self, text: str) -> str:
        """The part of `text`, and of the text that waits, that can be shown; none after a hit."""
        if self.hit:
            return ""
        if not self._stops:
            return text
        whole = self._waiting + text
        # The first that is complete counts, so that it does not matter how the text was cut.
        ends = [(at + len(stop), at, stop) for stop in self._stops if (at := whole.find(stop)) >= 0]
        if ends:
            _, at, self.stopped_by = min(ends)
            self.hit, self._waiting = True, ""
            return whole[:at]
        kept = max(_overlap(whole, stop) for stop in self._stops)
        self._waiting = whole[len(whole) - kept :]
        return whole[: len(whole) - kept]

    def rest(self) -> str:
        """The text that still waits when the answer has ended otherwise."""
        text, self._waiting = self._waiting, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """The number of last characters of `text` that are the first ones of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
