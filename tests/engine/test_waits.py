"""How often the device is waited for: never once an array, and never once a span."""

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache
from readers import Reader, planner_of
from waits import Counted, first_token, to_the_end

from llm_mlx_promptcache.cache.disk import restore
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.layers import pieces
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.batch_layers import extend, merge
from llm_mlx_promptcache.engine.request import GenerationRequest

LAYERS = 28


@pytest.fixture
def counted(monkeypatch):
    # Tiny rows, in as many groups as those of the largest model.
    monkeypatch.setattr(pieces, "_LEAST", 0)
    monkeypatch.setattr(restore, "_LEAST", 0)
    return Counted(monkeypatch)


def chat(messages):
    """So many messages, of which each ends a span."""
    return [Message(("user", "assistant")[n % 2], f"Hello {n}") for n in range(messages)]


class Talk:
    """Turns of one conversation over a model of 28 layers, counted up to each first token."""

    def __init__(self, scheduler_of, cache, counted, messages):
        self.scheduler = scheduler_of(cache, planner=planner_of(2048), layers=LAYERS)
        self.counted = counted
        self.messages = chat(messages)

    def turn(self):
        """Calls up to the first token, calls behind it, and the end."""
        reader = Reader(GenerationRequest(tuple(self.messages), max_tokens=4, drafts=False))
        self.counted.clear()
        first_token(self.scheduler, reader)
        first = dict(self.counted.calls)
        self.counted.clear()
        to_the_end(self.scheduler)
        behind, last = dict(self.counted.calls), reader.last
        self.scheduler.settle(last=True)
        self.messages += [
            Message("assistant", last.text, generated=last.generated()),
            Message("user", "And then?"),
        ]
        return first, behind, last.usage


@pytest.mark.parametrize("messages", [3, 21])
def test_waits_before_a_first_token_from_memory(scheduler_of, counted, messages):
    talk = Talk(scheduler_of, PromptCache("100MB"), counted, messages)
    first, behind, _ = talk.turn()
    assert first["eval"] == 1
    assert first.get("synchronize", 0) == 0
    # The answer's end: rows are returned in sixteenths, and one wait makes them findable.
    assert behind["eval"] <= 16
    first, behind, usage = talk.turn()
    assert usage.cached > 8 * messages
    assert first["eval"] <= 15
    assert first.get("synchronize", 0) == 0
    assert behind["eval"] <= 16


@pytest.mark.parametrize("messages", [3, 21])
def test_waits_before_a_first_token_with_a_disk(scheduler_of, counted, tmp_path, messages):
    talk = Talk(scheduler_of, PromptCache("100MB", DiskStore(tmp_path)), counted, messages)
    first, _, _ = talk.turn()
    assert first["eval"] <= 5
    assert first["synchronize"] <= 2  # rows in memory are findable, and rows that are written
    first, _, usage = talk.turn()
    assert usage.cached > 8 * messages
    assert first["eval"] <= 20
    again = Talk(scheduler_of, PromptCache("100MB", DiskStore(tmp_path)), counted, messages)
    again.messages = talk.messages
    first, _, usage = again.turn()
    assert usage.cached > 8 * messages
    assert first["eval"] <= 9


def test_waits_of_answers_that_join(counted):
    def rows():
        layers = [KVCache() for _ in range(LAYERS)]
        for layer in layers:
            layer.update_and_fetch(mx.ones((1, 2, 5, 8)), mx.ones((1, 2, 5, 8)))
        return layers

    batch = merge(rows(), rows())
    assert counted["eval"] <= 16
    counted.clear()
    extend(batch, rows())
    assert counted["eval"] <= 16
