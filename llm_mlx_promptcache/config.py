"""Where this user's files are, and the settings that `llm mlx-cached` writes.

Importing this file imports no MLX, no transformers and no huggingface_hub.
"""

from __future__ import annotations

import json
import os
import secrets
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import platformdirs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

APP = "llm-mlx-promptcache"
HOME_VARIABLE = "LLM_MLX_CACHED_HOME"
DEFAULT_MODEL = "default"
MODEL_ID = "mlx-cached"

_MOST_DAYS = 1_000_000  # no cache is as old, and a date that far away still fits
_SHOWN = 80  # characters of a bad value


class RegisteredModel(NamedTuple):
    """A model of the user's: `mlx-cached/<name>` in llm, and what it is: a folder or a hub id."""

    name: str
    reference: str
    aliases: tuple[str, ...] = ()


class Settings(NamedTuple):
    """What the user set. `default_model`: "default" (the embedded one), a folder, or a hub id.

    `memory` and `disk` bound the cache (bytes, or a string such as "4GB"), and what was not used
    for `max_days` leaves the disk; None leaves each to the cache itself.
    """

    default_model: str = DEFAULT_MODEL
    models: tuple[RegisteredModel, ...] = ()
    memory: int | str | None = None
    disk: int | str | None = None
    max_days: float | None = None

    def model(self, name: str) -> RegisteredModel | None:
        """The registered model of this name or alias, with or without `mlx-cached/` before it."""
        plain = name.removeprefix(f"{MODEL_ID}/")
        for model in self.models:
            if plain == model.name or name in model.aliases:
                return model
        return None

    def reference(self, name: str) -> str:
        """What a name, an alias or "mlx-cached" stands for; a folder or hub id for itself."""
        if name == MODEL_ID:
            return self.default_model
        registered = self.model(name)
        return name if registered is None else registered.reference


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
        return _settings(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Settings()
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"the settings in {path} can't be read ({reason}); correct or remove that file"
        ) from error


def change_settings(change: Callable[[Settings], Settings]) -> Settings:
    """Load, change and keep the settings; who does the same meanwhile waits, so none are lost."""
    with _alone():
        changed = change(load_settings())
        save_settings(changed)
    return changed


def save_settings(settings: Settings) -> None:
    """Keep the settings for later processes, and what a later version wrote beside them.

    ValueError where they can't be written.
    """
    path = _settings_file()
    try:
        made = json.dumps(_foreign(path) | _plain(settings), indent=2) + "\n"
        write_private_file(path, made)
    except OSError as error:
        raise ValueError(
            f"the settings can't be written to {path} ({error.strerror});"
            f" make that folder writable or set {HOME_VARIABLE} to another one"
        ) from error


@contextmanager
def _alone() -> Iterator[None]:
    """Hold the lock of the settings, where this system has locks and their folder takes a file."""
    with ExitStack() as held:
        with suppress(ImportError, OSError):
            import fcntl

            path = _settings_file().with_suffix(".lock")
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            held.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def _foreign(path: Path) -> dict[str, Any]:
    """What the file holds that this version has no name for."""
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return {name: found[name] for name in found if name not in Settings._fields}
    return {}


def _plain(settings: Settings) -> dict[str, Any]:
    """JSON data of what was set."""
    models = [model._asdict() for model in settings.models]
    found = settings._asdict() | {"models": models}
    return {name: value for name, value in found.items() if value not in (None, [])}


def _settings(found: Any) -> Settings:
    """The settings in JSON data; ValueError names what is wrong. Unknown names are let be."""
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")
    known = {name: found[name] for name in Settings._fields if name in found}
    for name, kinds in _KINDS.items():
        value = known.get(name)
        is_set = value is not None or (name == "default_model" and name in known)
        if is_set and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise ValueError(f"{name} is {_shown(value)}; give {_WANTED[name]}")
        if is_set:
            _check_value(name, value)
    models = tuple(_registered(entry) for entry in known.get("models") or ())
    return Settings(**{**known, "models": models})


_KINDS: dict[str, tuple[type, ...]] = {
    "default_model": (str,),
    "models": (list,),
    "memory": (int, str),
    "disk": (int, str),
    "max_days": (int, float),
}


_SIZES = 'bytes, or a string such as "500MB" or "4GiB"'
_WANTED = {
    "default_model": f'"{DEFAULT_MODEL}", a folder, or a hub id',
    "models": "a list of objects with name, reference and aliases",
    "memory": _SIZES,
    "disk": _SIZES,
    "max_days": "days above 0",
}


def _check_value(name: str, value: Any) -> None:
    """ValueError where a setting of the right type has a value that nothing can be done with."""
    if name in ("memory", "disk"):
        from .cache.sizes import parse_size

        with suppress(ValueError):
            parse_size(value, name)
            return
    elif name == "default_model":
        if value.strip():
            return
    elif name != "max_days" or 0 < value < _MOST_DAYS:
        return
    raise ValueError(f"{name} is {_shown(value)}; give {_WANTED[name]}")


def _shown(value: Any) -> str:
    """A value as the file has it, cut where it is long."""
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _registered(entry: Any) -> RegisteredModel:
    known = entry if isinstance(entry, dict) else {}
    name, reference = known.get("name"), known.get("reference")
    aliases = known.get("aliases", [])
    named = all(isinstance(text, str) and text for text in (name, reference))
    if not named or not isinstance(aliases, list) or not all(isinstance(a, str) for a in aliases):
        raise ValueError(
            f"models holds {_shown(entry)}; give each a name, a reference, and a list of aliases"
        )
    return RegisteredModel(str(name), str(reference), tuple(aliases))


def _settings_file() -> Path:
    return data_folder() / "settings.json"


def _folder(kind: str, ordinary: str) -> Path:
    home = os.environ.get(HOME_VARIABLE)
    try:
        folder = (Path(home).expanduser() / kind if home else Path(ordinary)).absolute()
    except RuntimeError as error:
        raise ValueError(
            f"{HOME_VARIABLE} is {home!r}, and nobody has that home; give a whole path"
        ) from error
    # Only who writes there can say what a missing folder means for them.
    with suppress(OSError):
        make_private_folder(folder)
    return folder
