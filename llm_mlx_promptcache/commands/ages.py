"""Ages as a user writes them: 12h, 7d, 4w."""

from __future__ import annotations

import re
from typing import Final

from ..config import MOST_DAYS

_AGE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([mhdw])\s*")
_DAYS: Final = {"m": 1 / 1440, "h": 1 / 24, "d": 1.0, "w": 7.0}
_SHOWN: Final = 40  # characters of one that is refused


def parse_age(age: str, option: str) -> float:
    """Days; ValueError names the option whose value is no age, or more than any cache can have."""
    match = _AGE.fullmatch(age)
    if match is None:
        raise ValueError(f"{option} is {age!r}; give an age such as 12h, 7d or 4w")
    number, unit = match.groups()
    days = float(number) * _DAYS[unit]
    if days >= MOST_DAYS:
        raise ValueError(f"{option} is {age[:_SHOWN]!r}; give less than {MOST_DAYS:,} days")
    return days
