"""Versions that all machines must share before anything is loaded: packages, a model's files.

Importing this file imports no MLX.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..config import APP
from ..host.hello import build_that_runs, shown

PROTOCOL: Final = 1  # of what a starter and its ranks tell each other
_PACKAGE: Final = Path(__file__).parent.parent
_MOST_FILES: Final = 10_000  # of a model's folder
_WORDS: Final = {"package": APP, "mlx_lm": "mlx-lm"}


class Versions(NamedTuple):
    """The versions that a rank runs; `digest` is of our own files' contents."""

    protocol: int
    package: str
    mlx: str
    mlx_lm: str
    digest: str


@cache
def versions() -> Versions:
    """The versions of this process."""
    made_of = build_that_runs()
    digest = sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(_PACKAGE).as_posix()}\0".encode())
        digest.update(sha256(path.read_bytes()).digest())
    return Versions(PROTOCOL, made_of.package, made_of.mlx, made_of.mlx_lm, digest.hexdigest())


def versions_differ(mine: Versions, theirs: Any) -> str:
    """The reason why such ranks can't work together, "" where they can; `theirs` is untrusted."""
    told = theirs if isinstance(theirs, Mapping) else {}
    for name, value in mine._asdict().items():
        if told.get(name) == value:
            continue
        if name == "digest":
            return f"its files of {APP} {mine.package} are others; install the same on both"
        what = _WORDS.get(name, name)
        return f"it runs {what} {shown(told.get(name))}, and this machine {value}; install the same"
    return ""


def files_of(folder: Path) -> dict[str, int]:
    """The files at the top of a model's folder by their names, with their bytes."""
    inside = islice(folder.iterdir(), _MOST_FILES)
    return {
        path.name: path.stat().st_size
        for path in inside
        if path.is_file() and not path.name.startswith(".")
    }


def files_differ(mine: Mapping[str, int], theirs: Any) -> str:
    """The file of a model whose size differs, in words; "" for none."""
    told = theirs if isinstance(theirs, Mapping) else {}
    for name in sorted({*mine, *told}):
        one, other = mine.get(name), told.get(name)
        if one != other:
            words = ["is not there" if n is None else f"has {shown(n)} bytes" for n in (other, one)]
            return f"its {shown(name)} {words[0]}, and here it {words[1]}; copy the model again"
    return ""
