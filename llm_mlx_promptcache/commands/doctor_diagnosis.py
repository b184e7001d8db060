"""A line of `doctor`: what was looked at, what was found, and what to do about it.

All of it is to be pasted in public: `Names` takes what is the user's own out of every text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final

from ..config import HOME_VARIABLE

_REST: Final = r"""[^\s'"():;,]+"""
# What is left of paths: an absolute one, or one in a home.
_PATH: Final = re.compile(rf"(?<![\w~$./…])(?:~/|/)(?:{_REST})")
_SYSTEM: Final = ("/bin/", "/usr/", "/proc/", "/dev/")


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


class Names:
    """Names of folders that may be told: ours mean the same to everybody."""

    def __init__(self, named: Iterable[tuple[str | Path, str]]) -> None:
        """`named`: paths, and what to call each; what lies in them keeps its name behind it."""
        spellings = {
            spelling: name
            for path, name in named
            for spelling in (str(path), os.path.realpath(path))
            if spelling.strip("/.")
        }
        longest = sorted(spellings.items(), key=lambda item: -len(item[0]))
        self._named = [
            (re.compile(rf"{re.escape(path)}((?:/{_REST})?)(?![\w-])"), name)
            for path, name in longest
        ]
        self._home = str(Path.home()) + "/"

    def public(self, text: str) -> str:
        """A text in which folders have these names, and what is left of paths has none."""
        kept: list[str] = []

        def keep(name: str, rest: str) -> str:
            kept.append(name + rest)
            return f"\0{len(kept) - 1}\0"

        for path, name in self._named:
            text = path.sub(lambda match, name=name: keep(name, match[1]), text)  # type: ignore[misc]
        text = _PATH.sub(_unnamed, text.replace(self._home, "~/"))
        return re.sub("\0(\\d+)\0", lambda match: kept[int(match[1])], text)


def folder_name(folder: Path) -> str:
    """The name of a folder of ours: by the variable that moves it, or from its owner's home."""
    moved = os.environ.get(HOME_VARIABLE)
    if moved:
        return f"${HOME_VARIABLE}/{folder.name}"
    try:
        return f"~/{folder.relative_to(Path.home())}"
    except ValueError:
        return f"…/{folder.name}"


def _unnamed(match: re.Match[str]) -> str:
    path = match[0]
    if path.startswith(_SYSTEM):
        return path
    return "~/…" if path.startswith("~") else "/…"
