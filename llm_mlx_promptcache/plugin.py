"""llm's hooks and nothing else; importing this file imports no MLX and no transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import llm

if TYPE_CHECKING:
    from collections.abc import Callable

    import click


@llm.hookimpl
def register_models(register: Callable[..., Any]) -> None:
    """Offer `mlx-cached`."""
    from .llm_models import AsyncMlxCached, MlxCached

    register(MlxCached(), AsyncMlxCached())


@llm.hookimpl
def register_commands(cli: click.Group) -> None:
    """Offer `llm mlx-cached ...`."""
    from .commands import mlx_cached

    cli.add_command(mlx_cached)
