"""The files of a model's folder: JSON, read with suspicion, and missing weights.

Importing this file imports no MLX.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..cache.plain_files import read_plain
from ..config import data_folder
from .errors import ModelLoadError, one_line

# Of a file that is read whole before anything is known of its content.
_LARGEST_JSON = 64 << 20


def missing_weights(folder: Path) -> str | None:
    """The name of a weights file that should be there and isn't; ModelLoadError."""
    if (folder / "model.safetensors.index.json").exists():
        shards = read_json(folder, "model.safetensors.index.json").get("weight_map")
        if not isinstance(shards, dict):
            raise damaged(folder, "model.safetensors.index.json has no weight_map")
        names = sorted({str(name) for name in shards.values()})
        return next((one_line(name) for name in names if not _is_there(folder / name)), None)
    if next(folder.glob("model*.safetensors"), None):
        return None
    return "model.safetensors"


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # no name that a file can have
        return False


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a file of a model; ModelLoadError where it is missing or can't be read."""
    try:
        data = json.loads(read_plain(folder / name, _LARGEST_JSON))
    except FileNotFoundError as error:
        raise damaged(folder, f"{name} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(folder, f"{name} can't be read: {one_line(error)}") from error
    if not isinstance(data, dict):
        raise damaged(folder, f"{name} holds no JSON object")
    return data


def damaged(folder: Path, why: str) -> ModelLoadError:
    """The error for a model in a folder that can't be used, with a remedy."""
    return ModelLoadError(
        f"the model in {folder} can't be used: {why}; {_remedy(folder)}, or use another model"
    )


def _remedy(folder: Path) -> str:
    """The remedy for a folder: in the hub's cache or ours, remove it and it is made again."""
    ours = folder.parent.name == "snapshots" or data_folder() in folder.parents
    return "remove that folder and fetch it again" if ours else "fetch or convert it again"
