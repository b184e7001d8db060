"""Engines over tiny models, with caches of their own."""

import dataclasses

import pytest
from readers import steady_clock, together

from llm_mlx_promptcache.cache.disk import shared_index
from llm_mlx_promptcache.cache.identity import Identity
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.engine.engine import Engine


@pytest.fixture(autouse=True)
def looks_that_wait(monkeypatch):
    """A busy machine's lookups find the index free in time: what they count is no matter of it."""
    for name in ("LOOK_SECONDS", "PEEK_SECONDS"):
        monkeypatch.setattr(shared_index, name, 0.9)


@pytest.fixture
def cache():
    """A cache that is whole at the end (law 3)."""
    made = PromptCache("100MB")
    yield made
    assert made.check() == []


@pytest.fixture
def folder(tiny_llama):
    """The folder of a tiny model; files that need another have a fixture of their own."""
    return tiny_llama()


@pytest.fixture
def engine_of():
    """`engine_of(folder, cache=None)` -> an engine that ends with the test."""
    from llm_mlx_promptcache.engine.one_machine import scheduler_here
    from llm_mlx_promptcache.models.loading import load_model

    made = []

    def make(folder, cache=None, identity="tiny"):
        kept = cache if cache is not None else PromptCache("100MB")
        made.append(
            Engine(
                lambda _: scheduler_here(
                    load_model(str(folder)), Identity(identity, identity), kept
                )
            )
        )
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def scheduler_of(tiny_llama):
    """`scheduler_of(cache=None, planner=, clock=, **model)` -> a model that this thread runs."""
    from llm_mlx_promptcache.engine.one_machine import scheduler_here
    from llm_mlx_promptcache.models.loading import load_model

    def make(cache=None, folder=None, planner=None, clock=None, **sizes):
        loaded = load_model(str(folder or tiny_llama(**sizes)))
        kept = cache or PromptCache("100MB")
        return scheduler_here(
            loaded, Identity("tiny", "tiny"), kept, planner=planner, clock=clock or steady_clock()
        )

    return make


@pytest.fixture(scope="session")
def loaded_kind(tiny_llama):
    """`loaded_kind(name, **own)`: a random model of a family with the tiny tokenizer.

    States of the mambas hardly fade here, so that a wrong one is seen long after.
    """
    import families

    from llm_mlx_promptcache.models.loading import LoadedModel, load_model

    def load(name, **own):
        base = load_model(str(tiny_llama()))
        family = families.BY_NAME[name].with_words(base.config["vocab_size"])
        model = dataclasses.replace(family, own={**family.own, **own}).build()
        if name in ("mamba", "mamba2"):
            for layer in model.layers:
                layer.mixer.A_log = layer.mixer.A_log * 0 - 8
        return LoadedModel(model, base.tokenizer, base.config, base.folder, 4096)

    return load


@pytest.fixture
def drafted():
    """`drafted(scheduler, one, right, seed)`: its reader, and the drafter that played `right`."""
    from played_drafts import playing

    def answer(scheduler, one, right, seed, **how):
        with playing(right.ids, seed, **how) as made:
            [reader] = together(scheduler, one)
        return reader, made[-1]

    return answer
