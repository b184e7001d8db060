"""The speed at which this process reads stored spans, compared with that of prefill."""

from __future__ import annotations

from typing import Final

_LEAST_BYTES: Final = 1 << 20  # less says more of the system's calls than of the disk
_WEIGHT: Final = 0.5  # of the last restore
_SLOWEST, _FASTEST = 1e4, 1e11  # bytes a second that are believed
_OPTIMISM: Final = 1.25


class Bandwidth:
    """A moving estimate of the bytes a second that restores get; optimistic until the first.

    Coded files have an estimate of their own: their bytes are unpacked as well.
    """

    def __init__(self) -> None:
        self._rates: dict[bool, float] = {}  # of coded files, and of others

    def measured(self, nbytes: int, seconds: float, *, coded: bool = False) -> None:
        """Note that a restore of so many bytes took so long."""
        if nbytes < _LEAST_BYTES:
            return
        rate = min(max(nbytes / max(seconds, 1e-9), _SLOWEST), _FASTEST)
        before = self._rates.get(coded, rate)
        self._rates[coded] = before ** (1 - _WEIGHT) * rate**_WEIGHT

    def is_slower(
        self, nbytes: int, tokens: int, prefill_speed: float | None, *, coded: bool = False
    ) -> bool:
        """True if reading takes longer than prefilling `tokens` at so many a second.

        A caller that gets True measures nothing, so the estimate rises each time: a disk that was
        slow once is tried again.
        """
        rate = self._rates.get(coded)
        if prefill_speed is None or rate is None or not tokens:
            return False
        if nbytes / rate <= tokens / prefill_speed:
            return False
        self._rates[coded] = min(rate * _OPTIMISM, _FASTEST)
        return True
