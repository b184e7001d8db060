"""Commands about models: those that the user has, their names, and the default."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click
import llm

from ..config import (
    DEFAULT_MODEL,
    MODEL_ID,
    RegisteredModel,
    Settings,
    change_settings,
    data_folder,
    load_settings,
)
from ..models.names import default_reference, resolve
from ..models.references import divided, folder_of
from .shown import json_option, show_json, show_table

if TYPE_CHECKING:
    from collections.abc import Iterator


@click.command()
@click.argument("name")
@json_option
def remove(*, name: str, as_json: bool) -> None:
    """Forget a registered model, by name or alias; its files and its cache stay.

    If it was the default, the embedded model becomes the default again.
    """
    from ..host.served import is_served

    before = load_settings()
    gone = _meant(before, name)
    if gone.served is not None and is_served(gone.name):
        raise ValueError(
            f"{MODEL_ID}/{gone.name} is served now; llm mlx-cached stop {quote(gone.name)} ends it"
        )
    after = change_settings(lambda settings: _without(settings, gone))
    llm_changed = _llm_without(gone)
    was_default = default_reference(before) != default_reference(after)
    if as_json:
        show_json({**plain_model(gone), "was_default": was_default, "was_llm_default": llm_changed})
        return
    click.echo(f"{MODEL_ID}/{gone.name} is no longer registered")
    if Path(gone.reference).parent == data_folder() / "models":
        click.echo(f"its converted files stay in {gone.reference}")
    if was_default:
        click.echo(
            f"it was the default, which is the embedded model again;"
            f" llm mlx-cached default {quote(gone.reference)} restores it"
        )
    if llm_changed:
        click.echo(f"it was llm's own default, which is {MODEL_ID} now")


@click.command()
@click.argument("model", required=False)
@click.option("--llm", "for_llm", is_flag=True, help="Also make it the model of plain `llm`.")
@json_option
def default(*, model: str | None, for_llm: bool, as_json: bool) -> None:
    """Show or set the model of `llm -m mlx-cached`.

    MODEL is a registered name or alias, a hub id, a folder, or "default", the embedded one. With
    --llm, plain `llm 'prompt'` asks it too, instead of a model of OpenAI's.
    """
    if model is None:
        settings = load_settings()
    else:
        found = _reference(model)
        settings = change_settings(lambda held: held.changed(default_model=found))
    if for_llm:
        _make_llm_default()
    reference = default_reference(settings)
    if as_json:
        show_json({"default_model": reference, "llm_default": _llm_default()})
        return
    click.echo(reference)
    if for_llm:
        click.echo(f"llm's own default is {MODEL_ID}")


@click.command()
@json_option
def models(*, as_json: bool) -> None:
    """List models: the default, the registered ones, and those in the Hugging Face cache."""
    from ..cache.sizes import format_size
    from ..models.memory import budget

    limit = budget()
    found = [_measured(entry, limit) for entry in _listed(load_settings())]
    if as_json:
        show_json({"memory_for_weights": limit, "models": found})
        return
    rows = [
        (
            ", ".join([entry["model"] or "not registered", *entry["aliases"]]),
            entry["reference"],
            "not here" if entry["bytes"] is None else format_size(entry["bytes"]),
            {True: "fits", False: "too large", None: "?"}[entry["fits"]],
        )
        for entry in found
    ]
    show_table(("model", "is", "size", f"in {format_size(limit)}"), rows)


@click.command()
@click.argument("model", default=MODEL_ID)
@json_option
def download(*, model: str, as_json: bool) -> None:
    """Fetch a model that is not on this machine yet: a registered name, an alias or a hub id."""
    from ..cache.sizes import format_size
    from ..models.loading import model_folder
    from ..models.memory import weights_of
    from ..models.progress import ProgressLine

    reference = resolve(model).reference
    with ProgressLine() as line:
        folder = model_folder(reference, line)
    if not (size := weights_of(folder)):
        raise ValueError(f"no model files are in {folder}: it has no model*.safetensors")
    if as_json:
        show_json({"reference": reference, "folder": str(folder), "bytes": size})
    else:
        click.echo(f"{reference} is here, {format_size(size)}: {folder}")


def _meant(settings: Settings, name: str) -> RegisteredModel:
    """The registered model that a name means, or a folder or hub id of just one; ValueError."""
    found = resolve(name, settings)
    if found.registered is not None:
        return found.registered
    same = [model for model in settings.models if model.reference == found.reference]
    if len(same) == 1:
        return same[0]
    if same:
        names = ", ".join(f"{MODEL_ID}/{model.name}" for model in same)
        raise ValueError(f"{name!r} is registered as {names}; give one of these names")
    if found.model_id or found.reference == DEFAULT_MODEL:
        raise ValueError(
            f"{name!r} is not a registered model, so it can't be removed;"
            " llm mlx-cached default MODEL sets another one"
        )
    raise ValueError(f"no model {name!r} is registered; llm mlx-cached models lists those that are")


def _without(settings: Settings, gone: RegisteredModel) -> Settings:
    """The settings without a model, which can't be the default any longer either."""
    kept = tuple(model for model in settings.models if model != gone)
    left = settings.changed(models=kept)
    was_default = default_reference(settings) == gone.reference
    if was_default and all(model.reference != gone.reference for model in kept):
        return left.changed(default_model=DEFAULT_MODEL)
    return left


def _llm_without(gone: RegisteredModel) -> bool:
    """Set llm's own default to `mlx-cached` if it was the model that is gone; True if it was."""
    if _llm_default() not in (f"{MODEL_ID}/{gone.name}", *gone.aliases):
        return False
    _make_llm_default()
    return True


def _llm_default() -> str:
    """The model of plain `llm`."""
    return str(llm.get_default_model())  # type: ignore[no-untyped-call]


def _make_llm_default() -> None:
    """Make `mlx-cached` the model of plain `llm`; ValueError if llm can't store that."""
    try:
        llm.set_default_model(MODEL_ID)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ValueError(
            f"llm's own default can't be written ({error.strerror}: {error.filename}); make its"
            " folder writable"
        ) from error


def plain_model(model: RegisteredModel) -> dict[str, Any]:
    """A registered model as programs read it."""
    return {
        "model": f"{MODEL_ID}/{model.name}",
        "aliases": list(model.aliases),
        "reference": model.reference,
    }


def _reference(model: str) -> str:
    """The reference behind a name, if a folder of that name holds a model; ValueError."""
    found = resolve(model).reference
    folder = folder_of(divided(found)[0])
    if folder is not None and not (folder / "config.json").is_file():
        raise ValueError(f"{found!r} is no folder with a model: it has no config.json")
    return found


def _listed(settings: Settings) -> Iterator[dict[str, Any]]:
    """The default model, the registered ones, and those in the hub's cache that are neither."""
    from ..models.here import models_in_cache

    yield {"model": MODEL_ID, "aliases": [], "reference": default_reference(settings)}
    yield from (plain_model(model) for model in settings.models)
    known = {default_reference(settings), *(model.reference for model in settings.models)}
    for held in models_in_cache():
        if held.reference not in known:
            yield {"model": None, "aliases": [], "reference": held.reference}


def _measured(entry: dict[str, Any], limit: int) -> dict[str, Any]:
    """The entry with its folder, its bytes, and whether they fit; None if it is not here."""
    from ..models.here import folder_here
    from ..models.memory import weights_of

    folder = folder_here(entry["reference"])
    size = weights_of(folder) if folder is not None else None
    return {
        **entry,
        "folder": str(folder) if folder is not None else None,
        "bytes": size,
        "fits": size <= limit if size is not None else None,
    }
