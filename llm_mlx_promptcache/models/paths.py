"""One spelling for each folder, however a user writes its path.

Links may lead to it, and on most Macs, and on many sticks anywhere, `Models` and `models` are one
folder. Two spellings of it would be two models in memory, or two hosts of one home.
"""

from __future__ import annotations

import os
import unicodedata
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

_MOST_BESIDE: Final = 100_000  # names in a folder that are looked at


def real_path(path: str | os.PathLike[str]) -> Path:
    """A whole path without links, each name of it as its folder has it; what is not there stays.

    Links that go round stay too. ValueError for what can be no path.
    """
    whole = Path(os.path.realpath(path))
    found = Path(whole.anchor)
    for name in whole.parts[1:]:
        found /= stored_name(found, name)
    return found


def stored_name(folder: Path, name: str) -> str:
    """The name by which a folder has what it finds by this one; the same where it finds nothing."""
    others = {name.swapcase(), *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))}
    if not any(_are_one(folder / name, folder / other) for other in others - {name}):
        return name
    with suppress(OSError), os.scandir(folder) as entries:
        names = (entry.name for entry in islice(entries, _MOST_BESIDE))
        alike = [one for one in names if _folded(one) == _folded(name)]
        if name not in alike:
            return next((one for one in alike if _are_one(folder / name, folder / one)), name)
    return name


def _are_one(path: Path, other: Path) -> bool:
    with suppress(OSError):
        return os.path.samestat(path.lstat(), other.lstat())
    return False


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())
