"""Windows are kept at each message of a chunk without a stop there: their buffer holds them all."""

import dataclasses

import pytest
from readers import Counting, Reader, planner_of, steady_clock, together

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.identity import Identity
from llm_mlx_promptcache.cache.layers.layout import Cuts, cuts_of, layout_of
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.one_machine import scheduler_here
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.models.layers import make_layers

WINDOWS = ["gemma3_text", "gpt_oss", "llama4"]
CHUNK = 128


def chat(messages):
    """So many messages, of which each is longer than a window."""
    return [Message(("user", "assistant")[n % 2], f"Word {n} of many") for n in range(messages)]


@pytest.fixture
def scheduler_of_kind(loaded_kind):
    """`(name, cache)` -> a scheduler over a model whose passes are counted, and that model."""

    def make(name, cache):
        loaded = loaded_kind(name)
        model = Counting(loaded.model)
        loaded = dataclasses.replace(loaded, model=model)
        assert loaded.vocab_size  # counted before its first pass
        more = {"planner": planner_of(CHUNK), "clock": steady_clock()}
        scheduler = scheduler_here(loaded, Identity(name, name), cache, **more)
        model.passes = 0  # what its layers take was asked of shapes
        return scheduler, model

    return make


def asked(scheduler, messages, **more):
    request = GenerationRequest(tuple(messages), max_tokens=3, drafts=False, **more)
    [reader] = together(scheduler, Reader(request))
    return reader.last


@pytest.mark.parametrize("name", WINDOWS)
def test_a_cold_prompt_stops_at_no_message(scheduler_of_kind, name):
    scheduler, model = scheduler_of_kind(name, PromptCache("100MB"))
    cold = asked(scheduler, chat(21))
    chunks = -(-(cold.usage.prompt - 1) // CHUNK)
    assert model.passes <= chunks + 4  # the answer has three tokens


@pytest.mark.parametrize("disk", [False, True], ids=["memory", "disk"])
@pytest.mark.parametrize("name", WINDOWS)
def test_law_1_each_message_of_a_chunk_is_gone_on_from(scheduler_of_kind, name, disk, tmp_path):
    stores = [DiskStore(tmp_path) if disk else None for _ in range(2)]
    cache = PromptCache("100MB", stores[0])
    scheduler, _ = scheduler_of_kind(name, cache)
    asked(scheduler, chat(21))
    if disk:
        scheduler.settle(last=True)
        cache = PromptCache("100MB", stores[1])
        scheduler, _ = scheduler_of_kind(name, cache)
    # Its own message, and what begins the answer, is all that is new.
    alone = asked(scheduler, [Message("user", "Else?")], use_cache=False).usage.prompt
    for count in range(2, 21, 2):
        fork = [*chat(count), Message("user", "Else?")]
        warm = asked(scheduler, fork)
        assert warm.usage.prefilled <= alone
        assert warm.ids == asked(scheduler, fork, use_cache=False).ids
    assert cache.check() == []


@pytest.mark.parametrize("name", ["mamba2", "jamba", "qwen3_next"])
def test_states_still_stop_at_each_message(scheduler_of_kind, name):
    scheduler, model = scheduler_of_kind(name, PromptCache("100MB"))
    asked(scheduler, chat(11))
    assert model.passes >= 11


def test_windows_with_keep_and_lists_stop(loaded_kind):
    from mlx_lm.models.cache import CacheList, KVCache, RotatingKVCache

    def cuts(*layers):
        return cuts_of(layout_of(layers))

    assert cuts(KVCache()) is Cuts.ANYWHERE
    assert cuts(KVCache(), RotatingKVCache(8)) is Cuts.IN_CHUNKS
    assert cuts(KVCache(), RotatingKVCache(8, keep=4)) is Cuts.NOWHERE
    assert cuts(KVCache(), CacheList(RotatingKVCache(8), KVCache())) is Cuts.NOWHERE
    assert cuts(*make_layers(loaded_kind("gemma3_text").model)) is Cuts.IN_CHUNKS
