"""`llm mlx-cached add`: a model registered under a name, once checked as far as possible."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import llm

from ..config import (
    DEFAULT_MODEL,
    MODEL_ID,
    RegisteredModel,
    Settings,
    change_settings,
    composed,
    load_settings,
)
from ..models.names import is_file, resolve
from ..models.references import divided, folder_of
from .models import plain_model
from .shown import json_option, show_json

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.command()
@click.argument("model", metavar="REPO_OR_FOLDER")
@click.option("--adapter", metavar="FOLDER", help="An adapter that mlx_lm.lora trained for it.")
@click.option("--name", help="Its name; default: the last part of the repo or folder.")
@click.option("aliases", "-a", "--alias", multiple=True, help="A short name; can be repeated.")
@json_option
def add(
    *, model: str, adapter: str | None, name: str | None, aliases: tuple[str, ...], as_json: bool
) -> None:
    """Register a model as mlx-cached/NAME: a hub id, a folder, or a GGUF file.

    The model is checked as far as possible without loading it. Nothing is fetched yet; a GGUF file
    is converted at once.
    """
    reference, given = _reference(model, adapter)
    called, *others = map(checked_name, (given if name is None else name, *aliases))
    made = RegisteredModel(name=called, reference=reference, aliases=tuple(others))
    _check_names(load_settings(), made)
    told = _checked(reference)

    def with_it(settings: Settings) -> Settings:
        _check_names(settings, made)
        return settings.changed(models=(*settings.models, made))

    change_settings(with_it)
    for line in told:
        click.echo(line, err=True)
    if as_json:
        show_json({**plain_model(made), "remarks": told})
        return
    also = f" (also: {', '.join(made.aliases)})" if aliases else ""
    click.echo(f"{MODEL_ID}/{made.name}{also} is {divided(reference)[0]}")


def _reference(model: str, adapter: str | None) -> tuple[str, str]:
    """The reference to register, and a name for it; ValueError if it is no model or adapter."""
    if model.endswith(".gguf") and is_file(model):
        path = Path(model).expanduser().absolute()
        from ..models.gguf_folder import converted_folder
        from ..models.progress import ProgressLine

        with ProgressLine() as line:
            base, name = str(converted_folder(path, line)), path.stem
    else:
        base = resolve(model).reference
        name = last_part(base)
    return base if adapter is None else resolve(f"{base}@{adapter}").reference, name


def _checked(reference: str) -> list[str]:
    """Remarks on a model for the user; ValueError if it can't work."""
    base, _ = divided(reference)
    if base == DEFAULT_MODEL:
        return []
    from ..models.usable import check_folder, check_hub

    folder = folder_of(base)
    return check_hub(base) if folder is None else check_folder(folder)


def last_part(reference: str) -> str:
    """The default name of a model."""
    base, _ = divided(reference)
    return "embedded" if base == DEFAULT_MODEL else Path(base).name


def checked_name(name: str) -> str:
    """The name in composed letters; ValueError if it can't be one."""
    name = composed(name)
    if not name or name != name.strip() or not name.isprintable():
        raise ValueError(f"{name!r} is not a name; give one without spaces around it")
    if name == DEFAULT_MODEL:
        raise ValueError(f"{name!r} is the embedded model; give another name")
    if any(part in ("", ".", "..", "~") for part in name.split("/")) or name.startswith("~"):
        raise ValueError(f"{name!r} is a path and no name; give one such as small or team/small")
    if name.startswith(f"{MODEL_ID}/"):
        plain = name.removeprefix(f"{MODEL_ID}/")
        raise ValueError(f"{name!r} begins with what llm puts before names; give {plain!r}")
    return name


def _check_names(settings: Settings, made: RegisteredModel) -> None:
    """ValueError if llm, or a model of ours, already has a name."""
    taken = {f"{MODEL_ID}/{model.name}" for model in settings.models}
    for known in llm.get_models_with_aliases():
        taken.update((known.model.model_id, *known.aliases))
    _check_free((f"{MODEL_ID}/{made.name}", *made.aliases), taken)


def _check_free(names: Sequence[str], taken: set[str]) -> None:
    for name in names:
        if name in taken:
            raise ValueError(
                f"{name!r} is a model's name already; give another with --name or --alias,"
                " or remove that one first"
            )
