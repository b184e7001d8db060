"""Sizes in bytes, as numbers or as strings such as "500MB" and "4GiB"."""

from __future__ import annotations

import re

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?\s*", re.IGNORECASE)
_LONGEST = 40  # characters; no number of so few overflows
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(size: int | str, name: str) -> int:
    """Bytes of `size`; ValueError that names the argument if it is no size."""
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
