"""`llm mlx-cached ...`: the default model, and the cache's place, size and end."""

from __future__ import annotations

import click

from .config import cache_folder, load_settings, save_settings


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
    """Print what the cache on disk holds."""
    from .cache.disk import DiskStore
    from .cache.sizes import format_size

    held = DiskStore(cache_folder()).stats()
    click.echo(
        f"{held['spans']} spans, {held['tokens']} tokens, {format_size(held['bytes'])}"
        f" of at most {format_size(held['budget'])} in {cache_folder()}"
    )


@mlx_cached.command()
def clear() -> None:
    """Remove everything that the cache holds on disk."""
    from .cache.disk import DiskStore
    from .cache.sizes import format_size

    click.echo(f"freed {format_size(DiskStore(cache_folder()).clear())}")
