"""Pauses between retries after failures: they grow, and nobody waits for their end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final


class Backoff:
    """Pauses after failures, each twice as long as the one before, up to `most` seconds."""

    FACTOR: Final = 2.0

    def __init__(
        self, first: float, most: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._first = first
        self._most = most
        self._clock = clock
        self._length = 0.0
        self._until = 0.0
        self.pressed = False  # somebody waits for the next try

    @property
    def active(self) -> bool:
        """True if nothing has worked since the last failure."""
        return self._length > 0

    @property
    def pause(self) -> float:
        """Seconds until the next try; 0 if there is no reason to wait."""
        return max(0.0, self._until - self._clock()) if self.active else 0.0

    def failed(self) -> bool:
        """Begin the next pause; True if it is the first since something worked."""
        first, self.pressed = not self.active, False
        self._length = self._first if first else min(self._length * self.FACTOR, self._most)
        self._until = self._clock() + self._length
        return first

    def worked(self) -> None:
        """Forget all pauses."""
        self._length, self.pressed = 0.0, False

    def try_again(self) -> None:
        """End the pause that is on; the next one is no shorter for it."""
        self._until, self.pressed = self._clock(), True
