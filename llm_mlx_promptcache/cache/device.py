"""Waits for the device to finish its work, and a count of its failures.

MLX marks arrays as evaluated before a GPU has finished them. A command that fails is reported once,
to whoever waits next, in any thread; its output is read as garbage from then on. So a failure
concerns all work under way, and only a wait behind it proves work done.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx


class _Failures:
    """A count of this process's failed works."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0

    def add(self) -> None:
        """One more."""
        with self._lock:
            self.count += 1


_failures = _Failures()


def failures() -> int:
    """The number of failures so far: work begun at another count is lost."""
    return _failures.count


@contextmanager
def work() -> Iterator[None]:
    """Run work on the device: any error in it counts as a failure, and is raised."""
    try:
        yield
    except BaseException:
        _failures.add()
        raise


def note(error: BaseException) -> bool:
    """True if an error may be the device's, which then counts as a failure.

    MLX raises RuntimeError; shapes and types, a model's own fault, raise others.
    """
    if not isinstance(error, RuntimeError | MemoryError):
        return False
    _failures.add()
    return True


def settle() -> None:
    """Wait for all of this thread's work on the device; RuntimeError if some of it failed."""
    with work():
        mx.synchronize()
