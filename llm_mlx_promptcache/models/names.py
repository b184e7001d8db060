"""Names that users give models -> models: one function for all commands and front ends.

Importing this file imports no MLX, no huggingface_hub and no llm.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import click

from ..cache.plain_files import read_plain
from ..config import DEFAULT_MODEL, MODEL_ID, RegisteredModel, Settings, load_settings
from .errors import ModelLoadError, shortened
from .references import adapter_of, divided, folder_of, is_hub_id, spelled

_PATH_STARTS = ("/", "~", "./", "../")
_LIST = "llm mlx-cached models lists the local ones"
_MOST_BESIDE = 1000  # names in a folder that are looked at for one that is near
_NEAR = 3
_LARGEST_ALIASES = 1 << 20  # bytes of llm's file


class NamedModel(NamedTuple):
    """A model that a user named: `reference` is "default", a folder's whole path or a hub id.

    With "@ADAPTER_FOLDER" behind it or not. `model_id` is llm's name for it, "" if llm has no such
    model; `registered` is the user's registration, if it is one.
    """

    reference: str
    model_id: str = ""
    registered: RegisteredModel | None = None


def resolve(name: str, settings: Settings | None = None) -> NamedModel:
    """The model that `name` stands for; ModelLoadError, in one line, if it stands for none.

    The first of these that fits: "default" (the embedded model); a path that begins with "/", "~",
    "./" or "../"; "mlx-cached" or a registered name, with "mlx-cached/" or without; an alias, ours
    or one of llm's; a folder that is here; a hub id. Nothing is fetched.
    """
    if name == DEFAULT_MODEL:
        return NamedModel(DEFAULT_MODEL)
    if not is_path(name):
        settings = load_settings() if settings is None else settings
        if (found := _registered(name, settings)) is not None:
            return found
    if (folder := folder_of(name)) is not None:
        return NamedModel(str(folder))
    base, adapter = divided(name)
    if adapter:
        return _with_adapter(resolve(base, settings), adapter)
    if is_path(name):
        raise _no_folder(name)
    assert settings is not None
    if (plain := name.rstrip("/")) != name and plain:
        return resolve(plain, settings)
    if is_hub_id(name) and not is_file(name):
        from .here import id_in_cache

        return NamedModel(id_in_cache(name))
    raise _unknown(name, settings)


def default_reference(settings: Settings) -> str:
    """The reference of the model that `llm -m mlx-cached` runs."""
    said = settings.default_model
    model = None if said == DEFAULT_MODEL else settings.model(said)
    return said if model is None else model.reference


def near(name: str, known: Iterable[str]) -> list[str]:
    """Names in `known` that a user who wrote `name` may have meant, the likeliest first."""
    by_form: dict[str, str] = {}
    for one in known:
        by_form.setdefault(one.casefold(), one)
    form = name.casefold()
    found = [whole for one, whole in by_form.items() if one.rpartition("/")[2] == form]
    matches = difflib.get_close_matches(form, by_form, _NEAR, 0.6)
    return list(dict.fromkeys([*found, *(by_form[one] for one in matches)]))[:_NEAR]


def or_near(names: Iterable[str]) -> str:
    """A question with near names, to append to an error; "" if there are none."""
    told = [repr(shortened(name)) for name in names]
    return f"; did you mean {' or '.join(told)}?" if told else ""


def llm_aliases() -> dict[str, str]:
    """Names set by `llm aliases set`, and the ids of the models that they stand for."""
    # As llm.user_dir does, which makes the folder; llm itself is slow to import.
    own = os.environ.get("LLM_USER_PATH")
    folder = Path(own) if own else Path(click.get_app_dir("io.datasette.llm"))
    try:
        data = json.loads(read_plain(folder / "aliases.json", _LARGEST_ALIASES))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(data, dict):
        return {}
    return {name: id for name, id in data.items() if isinstance(id, str)}


def _registered(name: str, settings: Settings) -> NamedModel | None:
    """The model of this name, or of the name that llm has it stand for."""
    for each in (name, llm_aliases().get(name)):
        if each == MODEL_ID:
            return NamedModel(default_reference(settings), MODEL_ID)
        if each is not None and (model := settings.model(each)) is not None:
            return NamedModel(model.reference, f"{MODEL_ID}/{model.name}", model)
    return None


def _with_adapter(model: NamedModel, adapter: str) -> NamedModel:
    base, own = divided(model.reference)
    if own:
        raise ModelLoadError(
            f"{model.model_id or base} has an adapter already, {own}; give the model that it was"
            " trained on top of"
        )
    whole = f"{base}@{adapter}"
    adapter_of(whole)
    return NamedModel(spelled(whole))


def _unknown(name: str, settings: Settings) -> ModelLoadError:
    """The error for a name that is no model's, with names that are near."""
    told = repr(shortened(name))
    if is_file(name):
        return _no_folder(name)
    if name.startswith(f"{MODEL_ID}/"):
        found = near(name.removeprefix(f"{MODEL_ID}/"), (model.name for model in settings.models))
        ids = or_near(f"{MODEL_ID}/{one}" for one in found)
        return ModelLoadError(f"no model {told} is registered; {_LIST}{ids}")
    if (other := llm_aliases().get(name)) is not None:
        return ModelLoadError(f"{told} is {other!r} in llm, and no model of {MODEL_ID}; {_LIST}")
    names = or_near(near(name, _known(settings)))
    return ModelLoadError(
        f"{told} is not a registered name, an alias, a local folder or a hub id (OWNER/NAME);"
        f" {_LIST}{names}"
    )


def _no_folder(name: str) -> ModelLoadError:
    """The error for a path without a model's folder, with what is beside it."""
    if is_file(name):
        return ModelLoadError(
            f"{shortened(name)!r} is a file, and a model is a folder with config.json, weights and"
            f" tokenizer; {_instead(name)}"
        )
    path = Path(name.rstrip("/") or "/")
    beside: list[str] = []
    with suppress(OSError, RuntimeError, ValueError):
        inside = islice(path.expanduser().parent.iterdir(), _MOST_BESIDE)
        beside = sorted(one.name for one in inside if one.is_dir())
    found = (str(path.with_name(one)) for one in near(path.name, beside))
    return ModelLoadError(f"there is no folder {shortened(name)!r}{or_near(found)}")


def _instead(file: str) -> str:
    if file.endswith(".gguf"):
        return f"llm mlx-cached add {quote(shortened(file))} makes one of it"
    return "give that folder"


def is_path(name: str) -> bool:
    """True if a name can only be a path, whether or not anything is there."""
    return name.startswith(_PATH_STARTS)


def is_file(name: str) -> bool:
    """True if a name is a file's path."""
    try:
        return Path(name).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):
        return False


def _known(settings: Settings) -> Iterator[str]:
    """Every name of a model that is here."""
    from .here import names_in_cache

    yield from (DEFAULT_MODEL, MODEL_ID)
    for model in settings.models:
        yield model.name
        yield from model.aliases
    ours = (MODEL_ID, *(f"{MODEL_ID}/{model.name}" for model in settings.models))
    yield from (alias for alias, id in llm_aliases().items() if id in ours)
    yield from names_in_cache()
