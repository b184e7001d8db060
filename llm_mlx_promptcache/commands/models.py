"""Commands about models: which the user has, what they are called, and which is the default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import llm

from ..config import (
    DEFAULT_MODEL,
    MODEL_ID,
    RegisteredModel,
    Settings,
    change_settings,
    load_settings,
)
from ..models.references import divided, folder_of, spelled
from .shown import json_option, show_json, show_table

if TYPE_CHECKING:
    from collections.abc import Iterator

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


@click.command()
@click.argument("model", metavar="REPO_OR_FOLDER")
@click.option("--adapter", metavar="FOLDER", help="What mlx_lm.lora trained on top of it.")
@click.option("--name", help="What to call it; else the last part of the repo or folder.")
@click.option("aliases", "-a", "--alias", multiple=True, help="A short name; can be repeated.")
@json_option
def add(
    *, model: str, adapter: str | None, name: str | None, aliases: tuple[str, ...], as_json: bool
) -> None:
    """Register a model as mlx-cached/NAME: a hub id, or a folder. Fetches nothing yet."""
    reference = _reference(model)
    made = RegisteredModel(
        name=name or _last_part(reference),
        reference=reference if adapter is None else _with_adapter(reference, adapter),
        aliases=aliases,
    )

    def with_it(settings: Settings) -> Settings:
        _check_names(settings, made)
        return settings.changed(models=(*settings.models, made))

    change_settings(with_it)
    if as_json:
        show_json(_plain(made))
    else:
        also = f" (also: {', '.join(aliases)})" if aliases else ""
        click.echo(f"{MODEL_ID}/{made.name}{also} is {reference}")


@click.command()
@click.argument("name")
@json_option
def remove(*, name: str, as_json: bool) -> None:
    """Forget a registered model, by name or alias; its files and what is cached of it stay."""
    gone = _registered(load_settings(), name)

    def without_it(settings: Settings) -> Settings:
        kept = tuple(model for model in settings.models if model != gone)
        return settings.changed(models=kept)

    change_settings(without_it)
    if as_json:
        show_json(_plain(gone))
    else:
        click.echo(f"{MODEL_ID}/{gone.name} is no longer registered")


@click.command()
@click.argument("model", required=False)
@json_option
def default(*, model: str | None, as_json: bool) -> None:
    """Show or set the model of `llm -m mlx-cached`.

    MODEL is a registered name or alias, a hub id, a folder, or "default", the embedded one.
    """
    if model is None:
        settings = load_settings()
    else:
        settings = change_settings(lambda s: s.changed(default_model=_default(s, model)))
    if as_json:
        show_json({"default_model": settings.default_model})
    else:
        click.echo(settings.default_model)


@click.command()
@json_option
def models(*, as_json: bool) -> None:
    """List models: the default, those registered, and what lies in the hub's cache."""
    from ..cache.sizes import format_size
    from ..models.memory import budget

    room = budget()
    found = [_measured(entry, room) for entry in _listed(load_settings())]
    if as_json:
        show_json({"memory_for_weights": room, "models": found})
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
    show_table(("model", "is", "size", f"in {format_size(room)}"), rows)


@click.command()
@click.argument("model", default=MODEL_ID)
@json_option
def download(*, model: str, as_json: bool) -> None:
    """Fetch a model that is not here yet: a registered name or alias, or a hub id."""
    from ..cache.sizes import format_size
    from ..models.loading import model_folder
    from ..models.memory import weights_of
    from ..models.progress import ProgressLine

    reference = load_settings().reference(model)
    with ProgressLine() as line:
        folder = model_folder(reference, line)
    if as_json:
        size = weights_of(folder)
        show_json({"reference": reference, "folder": str(folder), "bytes": size})
    else:
        click.echo(f"{reference} is here, {format_size(weights_of(folder))}: {folder}")


def _registered(settings: Settings, name: str) -> RegisteredModel:
    """The registered model of this name or alias; ValueError where there is none."""
    found = settings.model(name)
    if found is None:
        raise ValueError(
            f"no model {name!r} is registered; llm mlx-cached models lists those that are"
        )
    return found


def _default(settings: Settings, model: str) -> str:
    """What a registered name, an alias, a hub id, a folder or "default" stands for; ValueError."""
    if model == MODEL_ID or settings.model(model) is not None:
        return settings.reference(model)
    return _reference(model)


def _reference(model: str) -> str:
    """A folder's whole path, a hub id, or "default"; ValueError for anything else."""
    found, adapter = divided(spelled(model))
    if adapter:
        return _with_adapter(_reference(found), adapter)
    if found == DEFAULT_MODEL:
        return found
    folder = folder_of(found)
    known = _HUB_ID.fullmatch(found) if folder is None else (folder / "config.json").is_file()
    if not known:
        raise ValueError(
            f"{model!r} is no folder with a model (config.json) and no hub id; give a folder, or"
            " a hub id such as mlx-community/Qwen3-0.6B-4bit"
        )
    return found


def _with_adapter(reference: str, adapter: str) -> str:
    folder = folder_of(adapter)
    if folder is None or not (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"{adapter!r} is no folder with an adapter (adapter_config.json); give the folder that"
            " mlx_lm.lora wrote"
        )
    return f"{reference}@{folder}"


def _last_part(reference: str) -> str:
    return "embedded" if reference == DEFAULT_MODEL else Path(reference).name


def _check_names(settings: Settings, made: RegisteredModel) -> None:
    """ValueError where llm, or a model of ours, has one of the names already."""
    taken = {f"{MODEL_ID}/{model.name}" for model in settings.models}
    for known in llm.get_models_with_aliases():
        taken.update((known.model.model_id, *known.aliases))
    for name in (made.name, *made.aliases):
        if not name or name != name.strip() or not name.isprintable():
            raise ValueError(f"{name!r} is no name; give one without spaces around it")
    for name in (f"{MODEL_ID}/{made.name}", *made.aliases):
        if name in taken:
            raise ValueError(
                f"{name!r} is a model's name already; give another with --name or --alias,"
                " or remove that one first"
            )


def _plain(model: RegisteredModel) -> dict[str, Any]:
    return {
        "model": f"{MODEL_ID}/{model.name}",
        "aliases": list(model.aliases),
        "reference": model.reference,
    }


def _listed(settings: Settings) -> Iterator[dict[str, Any]]:
    """The default model, those registered, and those of the hub's cache that are neither."""
    from ..models.hub import models_in_cache

    yield {"model": MODEL_ID, "aliases": [], "reference": settings.default_model}
    yield from (_plain(model) for model in settings.models)
    known = {settings.default_model, *(model.reference for model in settings.models)}
    for held in models_in_cache():
        if held.reference not in known:
            yield {"model": None, "aliases": [], "reference": held.reference}


def _measured(entry: dict[str, Any], room: int) -> dict[str, Any]:
    """The entry with its folder, its bytes, and whether they fit; None where it is not here."""
    from ..models.loading import kept_folder
    from ..models.memory import weights_of

    folder = kept_folder(entry["reference"])
    size = weights_of(folder) if folder is not None else None
    return {
        **entry,
        "folder": str(folder) if folder is not None else None,
        "bytes": size,
        "fits": size <= room if size is not None else None,
    }
