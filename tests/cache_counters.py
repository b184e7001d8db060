"""Counters of a cache, but for what else the process holds."""

from typing import Any

from llm_mlx_promptcache.cache.prompt_cache import PromptCache


def counted(cache: PromptCache) -> dict[str, Any]:
    """All counters, but for what MLX holds: what its other threads free just now counts there."""
    stats = cache.stats()
    for told in ("held", "active", "pool"):
        del stats["memory"][told]
    return stats
