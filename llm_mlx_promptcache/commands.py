"""`llm mlx-cached ...`: the default model, and the cache's place, size, health and end."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from .config import cache_folder, load_settings, save_settings

if TYPE_CHECKING:
    from .cache.disk import DiskStore

_AGE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([mhdw])\s*")
_DAYS = {"m": 1 / 1440, "h": 1 / 24, "d": 1.0, "w": 7.0}


@click.group(name="mlx-cached")
def mlx_cached() -> None:
    """Models run with MLX that never compute the same prefix twice."""


@mlx_cached.command()
@click.argument("model", required=False)
def default(model: str | None) -> None:
    """Show or set the model of `llm -m mlx-cached`: a hub id, a folder, or "default"."""
    if model is not None:
        save_settings(load_settings()._replace(default_model=model))
    click.echo(load_settings().default_model)


@mlx_cached.command()
def path() -> None:
    """Print the folder that holds the cache."""
    click.echo(cache_folder())


@mlx_cached.command()
def stats() -> None:
    """Print what the cache on disk holds, in all and of each model."""
    from .cache.sizes import format_size

    store = _store()
    held = store.stats()
    click.echo(
        f"{held['spans']} spans, {held['tokens']} tokens, {format_size(held['bytes'])}"
        f" of at most {format_size(held['budget'])} in {cache_folder()}"
    )
    for model, spans, size in store.by_model():
        click.echo(f"  {model or 'unnamed'}: {spans} spans, {format_size(size)}")


@mlx_cached.command()
@click.option("--fix", is_flag=True, help="Remove what is damaged and what nobody needs.")
def check(fix: bool) -> None:
    """Read and verify all that the cache holds on disk; status 1 where something is wrong."""
    found = _store().check(fix=fix)
    for line in found:
        click.echo(line)
    if not found:
        click.echo("all is well")
    elif fix:
        click.echo(f"fixed {len(found)}")
    else:
        raise click.ClickException(f"{len(found)} found; llm mlx-cached check --fix removes them")


@mlx_cached.command()
@click.option("--model", help="Only of this model: a name that stats shows.")
@click.option("--older-than", metavar="AGE", help="Only what was not used for so long: 12h, 7d.")
def clear(model: str | None, older_than: str | None) -> None:
    """Remove what the cache holds on disk."""
    from .cache.sizes import format_size

    days = None if older_than is None else _days(older_than)
    freed = _store().clear(model=model, days=days)
    if model is None and days is None:
        # Digests of the models' files: no conversation, but ours.
        with suppress(OSError):
            (cache_folder() / "digests.json").unlink()
    click.echo(f"freed {format_size(freed)}")


def _store() -> DiskStore:
    from .cache.disk import DiskStore

    return DiskStore(cache_folder())


def _days(age: str) -> float:
    match = _AGE.fullmatch(age)
    if match is None:
        raise click.ClickException(f"--older-than is {age!r}; give an age such as 12h, 7d or 4w")
    number, unit = match.groups()
    return float(number) * _DAYS[unit]
