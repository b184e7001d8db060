"""Files that are read side by side: few descriptors, however many files.

A process may have 256 of them (macOS), or fewer, and its other libraries need some as well.
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
    """A file that is read from its start on, whose descriptor can be released in between.

    OSError if it can't be opened, again or at all, or has been replaced by then.
    """

    def __init__(self, path: Path, files: Files, number: int | None = None) -> None:
        self._path = path
        self._files = files
        self._number = files.open(path) if number is None else number
        self._paused: tuple[int, ...] | None = None
        self._at = 0

    @property
    def number(self) -> int:
        """The descriptor, reopened if it was released; -1 once it is closed."""
        if self._number < 0 and self._paused is not None:
            self._resume(self._paused)
        return self._number

    def pause(self) -> None:
        """Release the descriptor; the next use goes on from the same place."""
        if self._number >= 0:
            paused, self._at = _identity(self._number), os.lseek(self._number, 0, os.SEEK_CUR)
            self.close()
            self._paused = paused

    def close(self) -> None:
        """Close the file for good."""
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
    """A file with a descriptor that can be released."""

    def pause(self) -> None:
        """Release it until the next use."""


class Few:
    """The files that hold descriptors, at most so many at a time: the last used ones."""

    def __init__(self, most: int | None = None) -> None:
        self._most = most_open() if most is None else most
        self._open: OrderedDict[int, Pausable] = OrderedDict()

    def make_room(self) -> None:
        """Make room to open one more."""
        while len(self._open) >= self._most:
            self._open.popitem(last=False)[1].pause()

    def use(self, file: Pausable) -> None:
        """Open a file that is about to be read, or take in one that is open."""
        if self._open.pop(id(file), None) is None:
            self.make_room()
        self._open[id(file)] = file

    def holds(self, file: Pausable) -> bool:
        """True if a file has a descriptor now."""
        return id(file) in self._open


def most_open() -> int:
    """The number of files that may be open side by side: half of what this process has left."""
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
