"""Failures half way: the answers of others stay right, the cache whole, and the engine alive."""

import dataclasses
import threading

import pytest
from mlx_lm.models.cache import BatchKVCache, KVCache
from readers import Failing, Reader, planner_of, request, steady_clock, together

from llm_mlx_promptcache.cache.identity import Identity
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine import batch
from llm_mlx_promptcache.engine.batch_layers import BatchForm
from llm_mlx_promptcache.engine.batches import Batches
from llm_mlx_promptcache.engine.events import Finished
from llm_mlx_promptcache.engine.one_machine import scheduler_here
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.models.loading import load_model

QUESTIONS = ("One?", "Two?", "Three?")


def no_memory(*_):
    raise RuntimeError("[metal::malloc] no more memory")


@pytest.mark.parametrize("before", [1, 2])
def test_a_merge_that_fails_half_way_spoils_no_other_answer(
    scheduler_of, tiny_llama, cache, monkeypatch, before
):
    folder = tiny_llama(layers=4)
    asked = [request(text, max_tokens=24) for text in QUESTIONS[: before + 1]]
    alone = [together(scheduler_of(folder=folder), one)[0].last.ids for one in asked]
    scheduler = scheduler_of(cache, folder)
    assert scheduler.batch_form is BatchForm.PLAIN  # found out before anything fails
    first = [Reader(one) for one in asked[:before]]
    for one in first:
        scheduler.add(one)
        for _ in range(6):
            scheduler.step()
    merge, merged = KVCache.merge, []

    def fails(layers):
        merged.append(layers)
        return no_memory() if len(merged) == 2 else merge(layers)

    monkeypatch.setattr(KVCache, "merge", fails)
    [last] = together(scheduler, asked[before])
    assert len(merged) >= 2
    assert [one.last.ids for one in first] == alone[:before]
    with pytest.raises(RuntimeError, match="no more memory"):
        _ = last.last
    [again] = together(scheduler, asked[before])
    assert again.last.ids == alone[before]


def test_an_answer_that_can_not_be_taken_out_spoils_no_other(scheduler_of, cache, monkeypatch):
    asked = [
        request(text, max_tokens=most) for text, most in zip(QUESTIONS, (4, 12, 20), strict=True)
    ]
    alone = [together(scheduler_of(), one)[0].last.ids for one in asked]
    scheduler = scheduler_of(cache)
    tried = []

    def extract(layers, row):
        tried.append(row)
        no_memory()

    monkeypatch.setattr(batch, "extract", extract)
    assert [one.last.ids for one in together(scheduler, *asked)] == alone
    assert tried
    monkeypatch.undo()
    assert [one.last.ids for one in together(scheduler, *asked)] == alone


def test_a_batch_that_is_half_smaller_spoils_no_answer(scheduler_of, cache, monkeypatch):
    asked = [request(text, max_tokens=most) for text, most in (("One?", 4), ("Two?", 20))]
    alone = [together(scheduler_of(), one)[0].last.ids for one in asked]
    shrink, shrunk = BatchKVCache.filter, []

    def fails(layer, keep):
        shrunk.append(layer)
        return no_memory() if len(shrunk) == 2 else shrink(layer, keep)

    monkeypatch.setattr(BatchKVCache, "filter", fails)
    assert [one.last.ids for one in together(scheduler_of(cache), *asked)] == alone
    assert len(shrunk) == 2


def test_when_a_step_fails_everybody_is_told_and_the_engine_lives_on(
    tiny_llama, engine_of, cache, monkeypatch
):
    engine = engine_of(tiny_llama(), cache)
    told = {}

    def ask(text):
        try:
            *_, told[text] = engine.generate(request(text))
        except Exception as error:
            told[text] = error

    ask("Before")
    monkeypatch.setattr(Batches, "step", no_memory)
    monkeypatch.setattr(Batches, "leave", no_memory)
    # Daemons, and waited for in vain a while, where nobody tells them.
    threads = [threading.Thread(target=ask, args=(text,), daemon=True) for text in QUESTIONS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [str(told.get(text)) for text in QUESTIONS] == ["[metal::malloc] no more memory"] * 3
    monkeypatch.undo()
    ask("After")
    assert isinstance(told["After"], Finished)
    assert told["After"].usage.generated == 12


LONG = Message("system", "words and the capital of things " * 60)


@pytest.fixture(params=["llama", "mamba"])
def begun_again(request, tiny_llama, loaded_kind, cache):
    """A model, and two answers that begin again: the first has run a chunk of its prompt."""
    fails = []
    kind = request.param
    loaded = load_model(str(tiny_llama(context=8192))) if kind == "llama" else loaded_kind(kind)
    model = Failing(loaded.model, lambda tokens: fails and tokens.shape[0] == fails.pop())
    playing = dataclasses.replace(loaded, model=model)
    scheduler = scheduler_here(
        playing, Identity(kind, kind), cache, planner=planner_of(256), clock=steady_clock()
    )
    asked = [
        Reader(GenerationRequest((LONG, Message("user", text)), max_tokens=40))
        for text in QUESTIONS[:2]
    ]
    for one in asked:
        scheduler.add(one)
    while len(scheduler._decode) < 2:
        scheduler.step()
    for _ in range(3):
        scheduler.step()
    fails.append(2)
    cache.clear()  # as if others had needed the room
    scheduler.step()
    assert (model.failed, len(scheduler._waiting)) == (1, 2)
    scheduler.step()
    assert [sequence.done for sequence in scheduler._prefilling] == [256]
    return scheduler, asked


def cold(scheduler, one):
    asked = dataclasses.replace(one.request, use_cache=False)
    return together(scheduler, asked)[0].last.ids


def test_a_newcomer_shares_with_one_that_begins_again(begun_again):
    scheduler, asked = begun_again
    start = Message("system", LONG.content[:300])
    new = Reader(GenerationRequest((start, Message("user", "Three?")), max_tokens=4))
    together(scheduler, new)
    for one in [*asked, new]:
        assert one.last.ids == cold(scheduler, one)


def test_one_that_begins_again_and_goes_leaves_no_more_than_it_has(begun_again, cache):
    scheduler, asked = begun_again
    [sequence] = scheduler._prefilling
    whole, done = sequence.slot.path, sequence.done
    assert done < len(whole)
    for one in asked:
        one.gone_after = 0
    scheduler.step()
    assert not scheduler.busy
    assert cache.fetch(sequence.prepared.namespace, [*whole, 0]).cached == done
    assert cache.check() == []
    after = together(scheduler, asked[0].request)[0]
    assert after.last.ids == cold(scheduler, asked[0])
