"""llm's hooks and nothing else; importing this file imports no MLX and no transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import llm

if TYPE_CHECKING:
    from collections.abc import Callable

    import click


@llm.hookimpl
def register_models(register: Callable[..., Any]) -> None:
    """Offer `mlx-cached` and each model that the user registered."""
    from .config import load_settings, names_in_damaged_settings
    from .llm_adapter.models import AsyncMlxCached, MlxCached

    try:
        models = load_settings().models
    except ValueError:
        # Other plugins' models are not affected; each of our own raises it when asked.
        models = names_in_damaged_settings()
    register(MlxCached(), AsyncMlxCached())
    for model in models:
        made = (model.name, model.reference)
        register(MlxCached(*made), AsyncMlxCached(*made), aliases=model.aliases)


@llm.hookimpl
def register_commands(cli: click.Group) -> None:
    """Offer `llm mlx-cached ...`."""
    from .commands import mlx_cached

    cli.add_command(mlx_cached)
