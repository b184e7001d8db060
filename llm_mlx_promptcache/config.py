"""Where this user's files are, and the settings that `llm mlx-cached` writes.

Importing this file imports no MLX, no transformers and no huggingface_hub.
"""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs

APP = "llm-mlx-promptcache"
HOME_VARIABLE = "LLM_MLX_CACHED_HOME"
DEFAULT_MODEL = "default"


class Settings(NamedTuple):
    """What the user set. `default_model`: "default" (the embedded one), a folder, or a hub id."""

    default_model: str = DEFAULT_MODEL


def data_folder() -> Path:
    """The folder for models and settings, made for its owner only; LLM_MLX_CACHED_HOME moves it."""
    return _folder("data", platformdirs.user_data_dir(APP, appauthor=False))


def cache_folder() -> Path:
    """The folder of the prompt cache, made for its owner only; LLM_MLX_CACHED_HOME moves it."""
    return _folder("cache", platformdirs.user_cache_dir(APP, appauthor=False))


def make_private_folder(folder: Path) -> None:
    """Make `folder`, each missing level with mode 0700; levels that exist stay as they are."""
    if folder.is_dir():
        return
    if folder.parent != folder:
        make_private_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def create_private(path: Path | str) -> int:
    """A descriptor to write the new file `path`, mode 0600; FileExistsError where it is there."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


def write_private_file(path: Path, text: str) -> None:
    """Replace the file `path` by `text`, whole or not at all, mode 0600 from the first byte."""
    make_private_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = create_private(temporary)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_settings() -> Settings:
    """The user's settings; ValueError, with the file's name, where the file can't be used."""
    path = _settings_file()
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        model = found.get("default_model", DEFAULT_MODEL)
        if not isinstance(model, str):
            raise ValueError(f"default_model is {model!r}, not a name")
    except FileNotFoundError:
        return Settings()
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"the settings in {path} can't be read ({error}); correct or remove that file"
        ) from error
    return Settings(default_model=model)


def save_settings(settings: Settings) -> None:
    """Keep the settings for later processes; ValueError where they can't be written."""
    path = _settings_file()
    try:
        write_private_file(path, json.dumps(settings._asdict(), indent=2) + "\n")
    except OSError as error:
        raise ValueError(
            f"the settings can't be written to {path} ({error.strerror});"
            f" make that folder writable or set {HOME_VARIABLE} to another one"
        ) from error


def _settings_file() -> Path:
    return data_folder() / "settings.json"


def _folder(kind: str, ordinary: str) -> Path:
    home = os.environ.get(HOME_VARIABLE)
    folder = (Path(home).expanduser() / kind if home else Path(ordinary)).absolute()
    # Only who writes there can say what a missing folder means for them.
    with suppress(OSError):
        make_private_folder(folder)
    return folder
