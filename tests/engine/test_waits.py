"""Counts of waits for the device: never one for each array, and never one for each span."""

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache
from readers import planner_of, request, together
from waits import LAYERS, MOST_WAITS, Counted, Talk, chat, in_all_groups

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.engine import batch
from llm_mlx_promptcache.engine.batch import Batch
from llm_mlx_promptcache.engine.batch_layers import extend, merge
from llm_mlx_promptcache.models.kv_settings import KVSettings
from llm_mlx_promptcache.models.quantisation import is_quantised, quantise


@pytest.fixture
def counted(monkeypatch):
    in_all_groups(monkeypatch)
    return Counted(monkeypatch)


def talk_of(scheduler_of, counted, messages, cache):
    return Talk(
        scheduler_of(cache, planner=planner_of(2048), layers=LAYERS), counted, chat(messages)
    )


@pytest.mark.parametrize("messages", [3, 21])
def test_waits_before_a_first_token_from_memory(scheduler_of, counted, messages):
    talk = talk_of(scheduler_of, counted, messages, PromptCache("100MB"))
    first, behind, _ = talk.turn()
    assert first["eval"] == 1 <= MOST_WAITS["cold"]
    assert first.get("synchronize", 0) == 0
    # The answer's end: rows are returned in sixteenths, and one wait makes them findable.
    assert behind["eval"] <= 16
    first, behind, usage = talk.turn()
    assert usage.cached > 8 * messages
    assert first["eval"] <= MOST_WAITS["warm"]
    assert first.get("synchronize", 0) == 0
    assert behind["eval"] <= 16


@pytest.mark.parametrize("messages", [3, 21])
def test_waits_before_a_first_token_with_a_disk(scheduler_of, counted, tmp_path, messages):
    cache = PromptCache("100MB", DiskStore(tmp_path))
    talk = talk_of(scheduler_of, counted, messages, cache)
    first, _, _ = talk.turn()
    assert first["eval"] <= MOST_WAITS["cold"]
    assert first["synchronize"] <= 2  # rows in memory are findable, and rows that are written
    first, _, usage = talk.turn()
    assert usage.cached > 8 * messages
    assert first["eval"] <= MOST_WAITS["warm, with a disk"]
    again = talk_of(scheduler_of, counted, 0, PromptCache("100MB", DiskStore(tmp_path)))
    again.messages = talk.messages
    first, _, usage = again.turn()
    assert usage.cached > 8 * messages
    assert first["eval"] <= MOST_WAITS["after a restart"]


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
