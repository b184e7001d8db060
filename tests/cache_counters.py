"""Counters of a cache, but for what else the process holds."""

from typing import Any

from llm_mlx_promptcache.cache.prompt_cache import PromptCache


def counted(cache: PromptCache) -> dict[str, Any]:
    """All counters, but for `held`: what other threads of MLX free just now counts in it too."""
    stats = cache.stats()
    for told in ("held", "active", "pool"):
        del stats["memory"][told]
    return stats
