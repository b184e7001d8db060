"""The names of files of spans and packs, checked here before any path is made."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from .damage import DamagedIndex

SUFFIX: Final = ".safetensors"
PACK_SUFFIX: Final = ".pack.safetensors"
TEMPORARY: Final = ".tmp-"
_FILE_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)


def new_file_id() -> str:
    """A random file id: it tells nothing of the content and can't be guessed."""
    return secrets.token_hex(16)


def is_file_id(value: Any) -> bool:
    """True if a value is a file id: 32 hex digits and nothing else."""
    return isinstance(value, str) and _FILE_ID.fullmatch(value) is not None


def span_path(folder: Path, file_id: str) -> Path:
    """The path of a span's file; DamagedIndex if the file id could lead anywhere else."""
    if not is_file_id(file_id):
        raise DamagedIndex(f"{file_id!r:.50} is no span's name")
    return folder / (file_id + SUFFIX)


def pack_path(folder: Path, pack: str) -> Path:
    """The path of a pack's file; DamagedIndex if its id could lead anywhere else."""
    if not is_file_id(pack):
        raise DamagedIndex(f"{pack!r:.50} is no pack's name")
    return folder / (pack + PACK_SUFFIX)


def id_of(name: str) -> str:
    """The id in the name of a span's or a pack's file."""
    return name.removesuffix(PACK_SUFFIX if name.endswith(PACK_SUFFIX) else SUFFIX)


def packs_in(names: Iterable[str]) -> set[str]:
    """The ids of files with a pack's name."""
    packs = {name.removesuffix(PACK_SUFFIX) for name in names if name.endswith(PACK_SUFFIX)}
    return {pack for pack in packs if is_file_id(pack)}


def file_ids_in(names: Iterable[str]) -> set[str]:
    """The file ids of files with a span's name."""
    file_ids = {name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)}
    return {file_id for file_id in file_ids if is_file_id(file_id)}


def is_temporary(name: str) -> bool:
    """True if a name is that of a span that was never finished."""
    parts = name.removeprefix(TEMPORARY).split("-")
    return name.startswith(TEMPORARY) and len(parts) == 2 and parts[0].isdigit()
