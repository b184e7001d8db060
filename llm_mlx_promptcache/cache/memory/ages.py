"""Ages: the times of spans' last use; the order itself counts requests, it has no clock."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable
from typing import Final

_NEAR: Final = 5.0  # seconds, the finest difference; a long life has fewer moments than that
_MOST: Final = 4096  # moments that are kept


class Ages:
    """The times of an order's ticks, in Unix seconds as on the disk."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or time.time
        self._near = _NEAR
        self._times: list[float] = []
        self._ticks: list[int] = []

    def note(self, tick: int) -> None:
        """Note the time of a request's tick. A clock that was set back makes nothing older."""
        now = self._clock()
        if self._times and now - self._times[-1] < self._near:
            self._ticks[-1] = tick
            return
        self._times.append(now)
        self._ticks.append(tick)
        if len(self._times) == _MOST:
            # Two become one: a use at the later counts as one at the earlier.
            self._times, self._ticks = self._times[::2], self._ticks[1::2]
            self._near *= 2

    def unused_since(self, days: float) -> int:
        """The last tick that was so long ago: a span used at a later one is younger."""
        at = bisect_left(self._times, self._clock() - days * 86400)
        return self._ticks[at - 1] if at else 0

    def seconds_since(self, tick: int) -> float:
        """The seconds since a tick, at most."""
        at = bisect_left(self._ticks, tick)
        return max(0.0, self._clock() - self._times[at]) if at < len(self._times) else 0.0
