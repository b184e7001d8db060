"""Sizes in bytes, as numbers or as strings such as "500MB" and "4GiB", and a folder's budget."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Final

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?\s*", re.IGNORECASE)
_LONGEST = 40  # characters; no number of so few overflows
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(size: int | str, name: str) -> int:
    """Bytes of `size`; ValueError that names the argument where it is no size."""
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    match = _SIZE.fullmatch(size) if isinstance(size, str) and len(size) <= _LONGEST else None
    if match is None:
        raise ValueError(f'{name} is {size!r}; give bytes, or a string such as "500MB" or "4GiB"')
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWERS[unit.upper()])


def format_size(size: float) -> str:
    """A size for people, such as 12.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


class FolderBudget:
    """How many bytes a folder may hold: as many as were given, or what the disk can well spare."""

    MOST: Final = 20_000_000_000  # and no more than a tenth of the free space
    FREE_SHARE: Final = 10
    LEAST_FREE: Final = 1_000_000_000  # the watermark, and no more than a twentieth of the disk
    DISK_SHARE: Final = 20
    SECONDS: Final = 60.0

    def __init__(self, given: int | str | None) -> None:
        self._given = None if given is None else parse_size(given, "max_bytes")
        self._asked = float("-inf")
        self._found = 0

    def most(self, held: int, room: Callable[[], tuple[int, int]]) -> int:
        """The budget of a folder that holds so much; `room` tells free bytes and all of the disk.

        Everybody's writing changes what is free, so it is asked once a minute.
        """
        if self._given is not None:
            return self._given
        if time.monotonic() - self._asked > self.SECONDS:
            # The answer first: a thread that comes meanwhile must not take the old one for new.
            self._found = min(self.MOST, (room()[0] + held) // self.FREE_SHARE)
            self._asked = time.monotonic()
        return self._found

    def lacking(self, room: Callable[[], tuple[int, int]]) -> int:
        """Bytes below the watermark; none for who was given a budget."""
        if self._given is not None:
            return 0
        free, size = room()
        return min(self.LEAST_FREE, size // self.DISK_SHARE) - free
