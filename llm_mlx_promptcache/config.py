"""The folders of this user's files, and the settings that `llm mlx-cached` writes.

Importing this file imports no MLX, no transformers and no huggingface_hub.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import unicodedata
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import platformdirs
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from .cache.plain_files import open_plain, read_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

APP = "llm-mlx-promptcache"
HOME_VARIABLE = "LLM_MLX_CACHED_HOME"
KEEP_VARIABLE = "LLM_MLX_CACHED_KEEP"
DEFAULT_MODEL = "default"
MODEL_ID = "mlx-cached"

MOST_DAYS = 1_000_000  # no cache is that old, and a date that far away still fits
_SHOWN = 80  # characters of a bad value

KEEP = "5m"  # the time that an idle host stays
_FOREVER = "forever"
_KEEP = re.compile(r"(\d{1,6})([smhd])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_KEEPS = f'"30m" (s, m, h or d), 0 for no host, or "{_FOREVER}"'


def parse_keep(text: str, name: str) -> float | None:
    """Seconds that a host stays idle: 0 for no host, None for forever; ValueError names `name`."""
    said = text.strip()
    if said == _FOREVER:
        return None
    if said == "0":
        return 0.0
    match = _KEEP.fullmatch(said)
    if match is None:
        raise ValueError(f"{name} is {text[:_SHOWN]!r}; give {_KEEPS}")
    return float(int(match[1]) * _SECONDS[match[2]])


def _checked_keep(text: str) -> str:
    parse_keep(text, "it")
    return text


def _checked_size(size: int | str) -> int | str:
    """The size as it was given, if it is one; ValueError."""
    from .cache.sizes import parse_size

    parse_size(size, "it")
    return size


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("it is empty")
    return text


def composed(name: str) -> str:
    """A name in the one form in which names are compared: terminals and file systems differ."""
    return unicodedata.normalize("NFC", name)


_MOST_BYTES = 1 << 20  # of the settings; of a larger file so many are searched for names
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
# A model's name, and its aliases where they follow before the next one, as we write them.
_NAMED = re.compile(
    r'"name"\s*:\s*("(?:[^"\\]|\\.)*")(?:[^{}\[\]]*"aliases"\s*:\s*\[([^\[\]]*)\])?'
)

_Text = Annotated[str, Field(min_length=1)]
_Size = Annotated[int | str, AfterValidator(_checked_size)]
_Days = Annotated[float, Field(gt=0, lt=MOST_DAYS, allow_inf_nan=False)]


class ServedOver(BaseModel):
    """A model over several machines: a folder or hub id, the hostfile, how it is cut."""

    model_config = ConfigDict(frozen=True, strict=True)

    model: _Text
    hosts: _Text
    split: _Text
    backend: _Text


class RegisteredModel(BaseModel):
    """A registered model: `mlx-cached/<name>` in llm, and its folder or hub id.

    One that `llm mlx-cached serve` runs over several machines has `served`, and no other reference
    than its name (`references.served_name`), so that nobody loads it here.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    name: _Text
    reference: _Text
    aliases: tuple[str, ...] = ()
    served: ServedOver | None = None


class Settings(BaseModel):
    """The user's settings. `default_model`: "default" (the embedded one), a folder, or a hub id.

    `memory` and `disk` limit the cache (bytes, or a string such as "4GB"), and entries unused for
    `max_days` leave the disk; None leaves the choice to the cache. Fields of a later version are
    carried along. `keep` is the time that an idle host stays, such as "30m". `ahead` False: no next
    turn is prefilled while the user reads.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    default_model: Annotated[str, AfterValidator(_not_blank)] = DEFAULT_MODEL
    models: tuple[RegisteredModel, ...] = ()
    memory: _Size | None = None
    disk: _Size | None = None
    max_days: _Days | None = None
    keep: Annotated[str, AfterValidator(_checked_keep)] | None = None
    ahead: bool | None = None

    def changed(self, **values: Any) -> Settings:
        """These settings with some values changed; ValidationError if one can't be used."""
        return Settings.model_validate({**dict(self), **values})

    def model(self, name: str) -> RegisteredModel | None:
        """The registered model of this name or alias, with or without `mlx-cached/` before it."""
        name = composed(name)
        plain = name.removeprefix(f"{MODEL_ID}/")
        for model in self.models:
            if plain == composed(model.name) or name in map(composed, model.aliases):
                return model
        return None


def data_folder() -> Path:
    """The folder for models and settings, made for its owner only; LLM_MLX_CACHED_HOME moves it."""
    return _folder("data", platformdirs.user_data_dir)


def cache_folder() -> Path:
    """The folder of the prompt cache, made for its owner only; LLM_MLX_CACHED_HOME moves it."""
    return _folder("cache", platformdirs.user_cache_dir)


def make_private_folder(folder: Path) -> None:
    """Make `folder`, each missing level with mode 0700; levels that exist stay as they are."""
    if folder.is_dir():
        return
    if folder.parent != folder:
        make_private_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def create_private(path: Path | str) -> int:
    """A descriptor to write the new file `path`, mode 0600; FileExistsError if it exists."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


def write_private_file(path: Path, text: str) -> None:
    """Replace the file `path` by `text`, whole or not at all, mode 0600 from the first byte."""
    from .cache.disk.files import to_disk

    make_private_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = create_private(temporary)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            to_disk(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_settings() -> Settings:
    """The user's settings; ValueError, with the file's name, if the file can't be used."""
    path = _settings_file()
    try:
        return Settings.model_validate_json(read_plain(path, _MOST_BYTES))
    except FileNotFoundError:
        return Settings()
    except NotADirectoryError as error:
        file = next(above for above in path.parents if above.exists())
        raise ValueError(f"{file} is no folder; set {HOME_VARIABLE} to one") from error
    except (OSError, ValueError) as error:
        reason = _told(error) if isinstance(error, ValidationError) else str(error)
        raise ValueError(
            f"the settings in {path} can't be read ({reason}); correct or remove that file"
        ) from error


def names_in_damaged_settings() -> tuple[RegisteredModel, ...]:
    """The names of models in a settings file that can't be used, so that llm still knows them.

    Nothing else in it is trusted: asking one of them is an error that says the file is damaged.
    """
    try:
        with open_plain(_settings_file()) as file:
            text = file.read(_MOST_BYTES).decode("utf-8", "replace")
    except (OSError, ValueError):
        return ()
    found: dict[str, RegisteredModel] = {}
    for match in _NAMED.finditer(text):
        with suppress(ValueError):
            name = json.loads(match[1])
            aliases = tuple(json.loads(one) for one in _STRING.findall(match[2] or ""))
            found.setdefault(name, RegisteredModel(name=name, reference=name, aliases=aliases))
    return tuple(found.values())


def change_settings(change: Callable[[Settings], Settings]) -> Settings:
    """Load, change and keep the settings; concurrent changes wait, so that none is lost."""
    with _alone():
        changed = change(load_settings())
        save_settings(changed)
    return changed


def keep_seconds() -> float | None:
    """Seconds that a host stays idle, by LLM_MLX_CACHED_KEEP or the settings; None for forever.

    0 is no host at all. ValueError names a value that can't be read.
    """
    if said := os.environ.get(KEEP_VARIABLE):
        return parse_keep(said, KEEP_VARIABLE)
    return parse_keep(load_settings().keep or KEEP, "keep")


def save_settings(settings: Settings) -> None:
    """Keep the settings for later processes; ValueError if they can't be written."""
    path = _settings_file()
    try:
        write_private_file(path, settings.model_dump_json(indent=2, exclude_defaults=True) + "\n")
    except OSError as error:
        raise ValueError(
            f"the settings can't be written to {path} ({error.strerror});"
            f" make that folder writable or set {HOME_VARIABLE} to another one"
        ) from error


@contextmanager
def _alone() -> Iterator[None]:
    """Hold the lock of the settings, if this system has locks and their folder takes a file."""
    with ExitStack() as held:
        with suppress(NotImplementedError, OSError):
            from filelock import FileLock

            path = _settings_file().with_suffix(".lock")
            held.enter_context(FileLock(path, mode=0o600))
        yield


_SIZES = 'bytes, or a string such as "500MB" or "4GiB"'
_WANTED = {
    "default_model": f'"{DEFAULT_MODEL}", a folder, or a hub id',
    "models": "a list of objects with name, reference and aliases",
    "memory": _SIZES,
    "disk": _SIZES,
    "max_days": "days above 0",
    "keep": _KEEPS,
    "ahead": "true or false",
}


def _told(error: ValidationError) -> str:
    """The first problem in one line: the setting, its value, and what to give instead."""
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return first["msg"] if first["type"] == "json_invalid" else "it holds no JSON object"
    name = str(first["loc"][0])
    # For a size pydantic also names the type that it tried.
    place = ".".join(map(str, first["loc"])) if name == "models" else name
    return f"{place} is {_shown(first['input'])}; give {_WANTED[name]}"


def _shown(value: Any) -> str:
    """A value as the file has it, cut if it is long."""
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _settings_file() -> Path:
    return data_folder() / "settings.json"


def _folder(kind: str, ordinary: Callable[..., str]) -> Path:
    home = os.environ.get(HOME_VARIABLE)
    try:
        usual = Path(home).expanduser() / kind if home else Path(ordinary(APP, appauthor=False))
        folder = usual.absolute()
    except RuntimeError as error:
        wrong = f"is {home!r}, and nobody has that home" if home else "is not set, nor is HOME"
        raise ValueError(f"{HOME_VARIABLE} {wrong}; give an absolute path") from error
    # Only a writer can say what a missing folder means.
    with suppress(OSError):
        make_private_folder(folder)
    return folder
