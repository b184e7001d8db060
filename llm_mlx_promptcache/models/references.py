"""What a model is referred to by: "default", a folder or a hub id, with "@ADAPTER_FOLDER" or not.

Importing this file imports no MLX.
"""

from __future__ import annotations

from pathlib import Path

from ..config import DEFAULT_MODEL


def folder_of(text: str) -> Path | None:
    """The whole path of the folder that a text names; None where no such folder is here."""
    try:
        folder = Path(text).expanduser()
        return folder.resolve() if text and folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # `~` of nobody, a NUL, a circle of links
        return None


def divided(reference: str) -> tuple[str, str]:
    """A model's reference and its adapter's folder, which may be empty."""
    if folder_of(reference) is not None:
        return reference, ""
    model, _, adapter = reference.partition("@")
    return model, adapter


def spelled(reference: str) -> str:
    """The one spelling of a reference: folders that are here by their whole paths."""
    model, adapter = divided(reference)
    whole = model if model == DEFAULT_MODEL else _whole(model)
    return f"{whole}@{_whole(adapter)}" if adapter else whole


def _whole(text: str) -> str:
    folder = folder_of(text)
    return text if folder is None else str(folder)
