"""Files that are read side by side: few descriptors, however many files.

A process may have 256 of them (macOS), or fewer, and its other libraries want some as well.
"""

from __future__ import annotations

import errno
import os
import resource
from collections import OrderedDict
from pathlib import Path
from typing import Final, Protocol

from .files import Files

_MOST: Final = 64  # more make no restore faster
_OURS = Path("/dev/fd")


class Descriptor:
    """A file that is read from its start on, whose descriptor can be let go of in between.

    OSError where it can't be opened, again or at all, or is another file by then.
    """

    def __init__(self, path: Path, files: Files, number: int | None = None) -> None:
        self._path = path
        self._files = files
        self._number = files.open(path) if number is None else number
        self._paused: tuple[int, ...] | None = None
        self._at = 0

    @property
    def number(self) -> int:
        """The descriptor, opened again where it was let go of; -1 once it is closed."""
        if self._number < 0 and self._paused is not None:
            self._resume(self._paused)
        return self._number

    def pause(self) -> None:
        """Let go of the descriptor; the next use goes on where this one was."""
        if self._number >= 0:
            paused, self._at = _identity(self._number), os.lseek(self._number, 0, os.SEEK_CUR)
            self.close()
            self._paused = paused

    def close(self) -> None:
        """Let go of the file for good."""
        number, self._number, self._paused = self._number, -1, None
        if number >= 0:
            os.close(number)

    def _resume(self, known: tuple[int, ...]) -> None:
        number = self._files.open(self._path)
        try:
            if _identity(number) != known:
                raise OSError(errno.ESTALE, "replaced while it was read", self._path.name)
            os.lseek(number, self._at, os.SEEK_SET)
        except BaseException:
            os.close(number)
            raise
        self._number = number


class Pausable(Protocol):
    """What has a descriptor to let go of."""

    def pause(self) -> None:
        """Let go of it until the next use."""


class Few:
    """So many files hold descriptors at a time, at most: those that were used last."""

    def __init__(self, most: int | None = None) -> None:
        self._most = most_open() if most is None else most
        self._open: OrderedDict[int, Pausable] = OrderedDict()

    def make_room(self) -> None:
        """Let one more be opened."""
        while len(self._open) >= self._most:
            self._open.popitem(last=False)[1].pause()

    def use(self, file: Pausable) -> None:
        """Have a file opened that is about to be read, or take in one that is."""
        if self._open.pop(id(file), None) is None:
            self.make_room()
        self._open[id(file)] = file

    def holds(self, file: Pausable) -> bool:
        """Whether a file has a descriptor now."""
        return id(file) in self._open


def most_open() -> int:
    """How many files may be open side by side here: half of what this process has left."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return _MOST
    try:
        used = sum(1 for _ in _OURS.iterdir())
    except OSError:  # no such folder, or no descriptor to read it with
        used = limit // 2
    return max(1, min(_MOST, (limit - used) // 2))


def _identity(number: int) -> tuple[int, ...]:
    status = os.fstat(number)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
