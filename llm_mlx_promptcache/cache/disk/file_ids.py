"""The names of spans' files: what one of ours looks like, checked here before any path is made."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from .damage import DamagedIndex

SUFFIX: Final = ".safetensors"
TEMPORARY: Final = ".tmp-"
_STEM = re.compile(r"[0-9a-f]{32}", re.ASCII)


def new_stem() -> str:
    """A random stem: it tells nothing of the content and can't be guessed."""
    return secrets.token_hex(16)


def is_stem(value: Any) -> bool:
    """Whether a value is a stem: 32 hex digits and nothing else."""
    return isinstance(value, str) and _STEM.fullmatch(value) is not None


def span_path(folder: Path, stem: str) -> Path:
    """The path of a span's file; DamagedIndex where the stem could lead anywhere else."""
    if not is_stem(stem):
        raise DamagedIndex(f"{stem!r:.50} is no span's name")
    return folder / (stem + SUFFIX)


def stems_in(names: Iterable[str]) -> set[str]:
    """The stems of what looks like a span's file of ours."""
    stems = {name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)}
    return {stem for stem in stems if is_stem(stem)}


def is_temporary(name: str) -> bool:
    """Whether a name is one of a span that was never finished."""
    parts = name.removeprefix(TEMPORARY).split("-")
    return name.startswith(TEMPORARY) and len(parts) == 2 and parts[0].isdigit()
