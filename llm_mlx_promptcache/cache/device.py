"""Whether the device has done what it was given, and how often it has not.

MLX marks arrays as evaluated before a GPU has finished them. A command that fails is told once, to
whoever waits next, in whatever thread; what it should have written is read as garbage from then
on. So a failure speaks of all that was under way, and only a wait behind it proves work done.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx


class _Failures:
    """How many of this process's works have failed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0

    def add(self) -> None:
        """One more."""
        with self._lock:
            self.count += 1


_failures = _Failures()


def failures() -> int:
    """How often work has failed so far: what was begun at another count is nobody's."""
    return _failures.count


@contextmanager
def work() -> Iterator[None]:
    """What runs on the device: whatever goes wrong in it counts as a failure, and is raised."""
    try:
        yield
    except BaseException:
        _failures.add()
        raise


def note(error: BaseException) -> bool:
    """Whether what went wrong may be the device's, which counts as a failure then.

    RuntimeError is what MLX raises; shapes and types, which are a model's own, raise others.
    """
    if not isinstance(error, RuntimeError | MemoryError):
        return False
    _failures.add()
    return True


def settle() -> None:
    """Wait for all that this thread gave the device; RuntimeError where some of it failed."""
    with work():
        mx.synchronize()
