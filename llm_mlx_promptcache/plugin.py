"""llm's hooks and nothing else; importing this file imports no MLX and no transformers."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import click
import llm

if TYPE_CHECKING:
    from collections.abc import Callable


@llm.hookimpl
def register_models(register: Callable[..., Any]) -> None:
    """Offer `mlx-cached` and each model that the user registered."""
    from .config import Settings, load_settings
    from .llm_adapter.models import AsyncMlxCached, MlxCached

    try:
        settings = load_settings()
    except ValueError as error:
        # Of no concern to other plugins' models; our own say it as their error.
        _tell(str(error))
        settings = Settings()
    register(MlxCached(), AsyncMlxCached())
    for model in settings.models:
        made = (model.name, model.reference)
        register(MlxCached(*made), AsyncMlxCached(*made), aliases=model.aliases)


@cache
def _tell(error: str) -> None:
    """Once a process: llm asks for the models each time that it looks one up."""
    click.echo(f"llm-mlx-promptcache: {error}", err=True)


@llm.hookimpl
def register_commands(cli: click.Group) -> None:
    """Offer `llm mlx-cached ...`."""
    from .commands import mlx_cached

    cli.add_command(mlx_cached)
