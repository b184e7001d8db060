"""Wired memory: what macOS keeps resident for the models at work (elsewhere nothing happens).

mlx-lm wires as much as it can, again for each answer. Here the limit is the size of the models and
a limit on what comes with them, and stays between answers: wiring costs as much as reading.
"""

from __future__ import annotations

import threading
from typing import Final

from ..cache import device
from ..cache.layers import device_memory
from ..models.memory import wired_limit


class WiredMemory:
    """The process's limit: each model at work holds it, and the last one gives it back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._weights: dict[int, int] = {}
        self._limit = 0
        self._before: int | None = None

    def hold(self, holder: int, weights: int) -> None:
        """Keep `weights` bytes of a model resident until released; a second call does nothing."""
        memory = device_memory.device_memory()
        with self._lock:
            if holder in self._weights or not memory.gpu:
                return
            limit = wired_limit(memory, weights + sum(self._weights.values()))
            # Never less while somebody works: macOS would take back what the GPU is reading.
            if limit > self._limit:
                before = device_memory.wire(limit)
                self._before = before if self._before is None else self._before
                self._limit = limit
            self._weights[holder] = weights

    def release(self, holder: int) -> None:
        """Release a resting model; RuntimeError if the device fails, with the limit restored."""
        with self._lock:
            if self._weights.pop(holder, None) is None or self._weights:
                return
            before, self._before, self._limit = self._before, None, 0
            try:
                device.settle()
            finally:
                if before is not None:
                    device_memory.wire(before)


WIRED: Final = WiredMemory()
