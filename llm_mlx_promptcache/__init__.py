"""Run language models with MLX and never compute the same prefix twice."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cache.disk.store import DiskStore
    from .cache.insertion import Rows
    from .cache.memory.leases import Lease
    from .cache.prompt_cache import PromptCache
    from .cache.store import NullStore

__all__ = ["DiskStore", "Lease", "NullStore", "PromptCache", "Rows"]

_MODULES = {
    "DiskStore": "disk.store",
    "Lease": "memory.leases",
    "NullStore": "store",
    "PromptCache": "prompt_cache",
    "Rows": "insertion",
}


class _BeforeMLX:
    """Asked before any module is found; finds none, but loads a fast BLAS before MLX.

    It is an import hook since anybody may import MLX first: an engine, a tokenizer that counts, an
    application of its own; and whoever imports no MLX must pay nothing.
    """

    def find_spec(self, name: str, *_: object) -> None:
        """Nothing, ever."""
        if name == "mlx.core":
            from .models.blas_preload import preload

            preload()


if sys.platform == "linux":
    sys.meta_path.insert(0, _BeforeMLX())


def __getattr__(name: str) -> Any:
    # llm imports every plugin for each of its commands, so MLX waits until somebody asks.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".cache.{_MODULES[name]}", __name__), name)
