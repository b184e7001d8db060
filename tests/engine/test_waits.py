"""Counts of waits for the device: never one for each array, and never one for each span."""

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache
from readers import Reader, planner_of, request, together
from waits import Counted, first_token, to_the_end

from llm_mlx_promptcache.cache.disk import streams
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.layers import pieces
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine import batch
from llm_mlx_promptcache.engine.batch import Batch
from llm_mlx_promptcache.engine.batch_layers import extend, merge
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.models.kv_settings import KVSettings
from llm_mlx_promptcache.models.quantisation import is_quantised, quantise

LAYERS = 28


@pytest.fixture
def counted(monkeypatch):
    # Tiny rows, in as many groups as those of the largest model.
    monkeypatch.setattr(pieces, "_LEAST", 0)
    monkeypatch.setattr(streams, "_LEAST", 0)
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


def rows():
    layers = [KVCache() for _ in range(LAYERS)]
    for layer in layers:
        layer.update_and_fetch(mx.ones((1, 2, 5, 64)), mx.ones((1, 2, 5, 64)))
    return layers


def test_waits_of_rows_that_are_quantised(counted):
    layers = rows()
    quantise(layers, KVSettings(8, 64, 0))
    assert counted["eval"] <= 16
    assert is_quantised(layers)


def test_waits_of_answers_that_join(counted):
    merged = merge(rows(), rows())
    assert counted["eval"] <= 16
    counted.clear()
    extend(merged, rows())
    assert counted["eval"] <= 16


def test_greedy_rows_of_a_batch_are_chosen_at_once(scheduler_of, monkeypatch):
    scheduler = scheduler_of()
    texts = ("One?", "And two?", "And three of them?")
    alone = [together(scheduler, request(text, use_cache=False))[0].last.ids for text in texts]
    taken, real = [], mx.argmax
    monkeypatch.setattr(mx, "argmax", lambda a, **at: taken.append(a.shape[0]) or real(a, **at))
    readers = together(scheduler, *(request(text, drafts=False) for text in texts))
    assert [reader.last.ids for reader in readers] == alone
    assert 3 in taken
    assert len(taken) <= 3 + max(len(ids) for ids in alone)


class Steps:
    """The work of each step of a batch, in its order: passes of so many tokens, and reads."""

    def __init__(self, monkeypatch):
        self.seen = []
        forward, known, step = batch.forward, Batch._known, Batch._step

        def passed(model, layers, tokens):
            self.seen[-1] += (tokens.shape,)
            return forward(model, layers, tokens)

        def read(of, tokens):
            self.seen[-1] += ("read",)
            return known(of, tokens)

        def stepped(of):
            self.seen.append(())
            return step(of)

        monkeypatch.setattr(batch, "forward", passed)
        monkeypatch.setattr(Batch, "_known", read)
        monkeypatch.setattr(Batch, "_step", stepped)


FREE = {"regex": "[a-z]{40}", "drafts": False, "max_tokens": 24}


def test_a_pass_does_not_wait_for_the_token_that_a_grammar_reads(scheduler_of, monkeypatch):
    scheduler = scheduler_of()
    cold = [together(scheduler, request(text, **FREE))[0].last.ids for text in ("One?", "Two?")]
    steps = Steps(monkeypatch)
    readers = together(scheduler, *(request(text, **FREE) for text in ("One?", "Two?")))
    assert [reader.last.ids for reader in readers] == cold
    both = [step for step in steps.seen if (2, 1) in step]
    assert len(both) > 15
    assert set(both) == {((2, 1), "read")}


def test_one_answer_alone_reads_first_while_its_grammar_forces_tokens(scheduler_of, monkeypatch):
    scheduler, steps = scheduler_of(), Steps(monkeypatch)
    made = request("One?", regex="[a-z]{20}, and that is all of it!", drafts=False, max_tokens=99)
    [reader] = together(scheduler, made)
    assert reader.last.text.endswith(", and that is all of it!")
    forced = next(at for at, step in enumerate(steps.seen) if len(step) == 3)
    # It waits for the first tokens, then no more; a run takes a pass of its own.
    assert steps.seen[:8] == [("read", (1, 1))] * 8
    assert set(steps.seen[8:forced]) == {((1, 1), "read")}
    assert forced > 15
    token, read, (_, run) = steps.seen[forced]
    assert (token, read) == ((1, 1), "read")
    assert run > 3
    # Behind it tokens are read first again.
    assert all(step[0] == "read" for step in steps.seen[forced + 1 :])
