"""Models on this machine, found from folders alone, for callers that load none.

Importing this file imports no MLX, no transformers and no client of the hub; only the folder of the
embedded model depends on the device. The layout of the hub's cache:
https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from ..cache.plain_files import read_plain
from ..config import DEFAULT_MODEL, data_folder
from .errors import ModelLoadError
from .model_files import missing_weights
from .paths import stored_name
from .references import divided, folder_of, is_hub_id
from .served import model_behind

_MOST_NAMES: Final = 10_000  # of folders that are looked at
_COMMIT: Final = re.compile(r"[0-9a-f]{40}", re.ASCII)


class HubModel(NamedTuple):
    """A model in the hub's cache: its id and the folder of the revision that is used."""

    reference: str
    folder: Path


def folder_here(reference: str) -> Path | None:
    """The folder of a model that need not be fetched, as far as its files tell; else None."""
    reference, _ = divided(model_behind(reference))
    if reference == DEFAULT_MODEL:
        from .default_model import default_folder

        folder = default_folder(data_folder())
        return folder if folder.is_dir() else None
    if (given := folder_of(reference)) is not None:
        return given
    return hub_folder(reference) if is_hub_id(reference) else None


def models_in_cache() -> list[HubModel]:
    """The language models in the hub's cache, if there is one."""
    found = ((name, hub_folder(name)) for name in names_in_cache())
    return sorted(HubModel(name, folder) for name, folder in found if folder is not None)


def names_in_cache() -> Iterator[str]:
    """The ids of everything in the hub's cache that is named as a model; no file is opened."""
    with suppress(OSError):
        for folder in islice(_hub_cache().iterdir(), _MOST_NAMES):
            kind, *parts = folder.name.split("--")
            if kind == "models" and len(parts) == 2:
                yield "/".join(parts)


def hub_folder(reference: str) -> Path | None:
    """The folder of a fetched hub model; None if it is not here, or incomplete."""
    held = _hub_cache() / _cached_as(reference)
    try:
        commit = read_plain(held / "refs" / "main", 41).decode("ascii").strip()
        folder = held / "snapshots" / commit
        is_here = _COMMIT.fullmatch(commit) and (folder / "config.json").exists()
        return folder if is_here and not missing_weights(folder) else None
    except (OSError, ValueError, ModelLoadError):
        return None


def id_in_cache(reference: str) -> str:
    """A hub's model as its cache spells it: some disks find it by any case."""
    found = stored_name(_hub_cache(), _cached_as(reference))
    return reference if found == _cached_as(reference) else "/".join(found.split("--")[1:])


def _cached_as(reference: str) -> str:
    """The name of the folder in which the hub's cache has a model."""
    return f"models--{reference.replace('/', '--')}"


def _hub_cache() -> Path:
    """The folder in which the hub's client stores what it fetches, by the same variables."""
    caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = _expanded(os.environ.get("HF_HOME", str(Path(caches) / "huggingface")))
    older = os.environ.get("HUGGINGFACE_HUB_CACHE", str(Path(home) / "hub"))
    return Path(_expanded(os.environ.get("HF_HUB_CACHE", older)))


def _expanded(path: str) -> str:
    return os.path.expandvars(os.path.expanduser(path))  # noqa: PTH111 - a home that nobody has stays
