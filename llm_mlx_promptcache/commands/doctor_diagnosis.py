"""A line of `doctor`: what was looked at, what was found, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Health(Enum):
    """The way a line is to be taken."""

    OK = "ok"
    NOTE = "worth knowing"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One line. `todo` is what to do, "" where that is nothing; `figures` are for programs."""

    part: str
    what: str
    found: str
    health: Health = Health.OK
    todo: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
