"""Engines over tiny models, with caches of their own."""

import pytest

from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.engine.engine import Engine


@pytest.fixture
def engine_of():
    """`engine_of(folder, cache=None)` -> an engine that ends with the test."""
    from llm_mlx_promptcache.engine.loading import load_model
    from llm_mlx_promptcache.engine.running import Running

    made = []

    def make(folder, cache=None, identity="tiny"):
        kept = cache if cache is not None else PromptCache("100MB")
        made.append(Engine(lambda: Running(load_model(str(folder)), identity, kept)))
        return made[-1]

    yield make
    for engine in made:
        engine.close()
