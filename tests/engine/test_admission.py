"""Admission by what requests will hold soon, and the recovery where that was wrong."""

import dataclasses
import itertools

import pytest
from readers import Reader, request, steady_clock, together

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.identity import Identity
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.engine.admission import MOST_PASSED, Admission, RequestMemory
from llm_mlx_promptcache.engine.chunks import ChunkPlanner, ChunkSizes
from llm_mlx_promptcache.engine.events import Finished
from llm_mlx_promptcache.engine.one_machine import scheduler_here
from llm_mlx_promptcache.engine.request import Sampling
from llm_mlx_promptcache.models.loading import load_model


def admission_of(limit):
    """One that knows that a token takes a byte, so that `limit` is in tokens."""
    admission = Admission(RequestMemory(limit))

    class Layer:
        nbytes = 256

    admission.measure([Layer()], 256)
    admission.measure = lambda layers, tokens: None
    return admission


@pytest.fixture
def without_context(tiny_llama):
    """A model that does not say how long its context is."""
    loaded = dataclasses.replace(load_model(str(tiny_llama(context=8192))), context_length=None)

    def make(cache=None, **more):
        return scheduler_here(
            loaded,
            Identity("tiny", "tiny"),
            cache or PromptCache("100MB"),
            **{"clock": steady_clock(), **more},
        )

    return make


def test_an_answer_that_may_go_on_for_ever_holds_up_nobody(without_context):
    scheduler = without_context()
    scheduler._admission = admission_of(4096)
    endless = Reader(request("One?", max_tokens=10**9))
    others = [Reader(request(f"{n}?")) for n in range(3)]
    for one in (endless, *others):
        scheduler.add(one)
    while not all(one.events and one.events[-1] is None for one in others):
        scheduler.step()
        assert len(scheduler._decode) + len(scheduler._prefilling) + len(scheduler._waiting) <= 4
    assert all(isinstance(one.last, Finished) for one in others)
    assert endless.events[-1] is not None  # they were answered beside it, not after
    endless.gone_after = 0
    together(scheduler)


def test_answers_of_any_limit_take_their_steps_in_one_batch(without_context):
    scheduler = without_context()
    asked = [Reader(request(f"{n}?", max_tokens=10**9), gone_after=30) for n in range(3)]
    for one in asked:
        scheduler.add(one)
    while len(scheduler._decode) < 3:
        scheduler.step()
    assert len(scheduler._decode._batches._all()) == 1
    together(scheduler)


VARIED = [
    request("One?", max_tokens=60, logprobs=2),
    request("Two?", max_tokens=70, sampling=Sampling(temperature=1.5, seed=7)),
    request("Three?", max_tokens=80, schema={"type": "array", "items": {"type": "integer"}}),
    request("Four?", max_tokens=60, sampling=Sampling(repetition_penalty=1.3, top_k=9)),
]


@pytest.mark.parametrize(("first", "disk"), [(0, False), (3, False), (1, True)])
def test_where_answers_outgrow_the_bound_the_newest_wait_and_lose_no_token(
    without_context, tmp_path, first, disk
):
    requests = [*VARIED[first:], *VARIED[:first]]
    alone = [together(without_context(), one)[0].last for one in requests]
    cache = PromptCache("100MB", DiskStore(tmp_path) if disk else None)
    scheduler = without_context(cache)
    asked = [Reader(one) for one in requests]
    for one in asked:
        scheduler.add(one)
    while len(scheduler._decode) < len(asked):
        scheduler.step()
    scheduler._admission = admission_of(scheduler._decode._batches.tokens + 40)
    most, waited = len(asked), 0
    while scheduler.busy:
        scheduler.step()
        waited = max(waited, len(scheduler._waiting))
        oldest = next(
            (sequence for sequence in scheduler._active() if sequence.reader is asked[0]), None
        )
        assert oldest is not None or asked[0].events[-1] is None
        held = scheduler._decode._batches.tokens
        assert len(scheduler._active()) == 1 or scheduler._admission.holds(held)
        most = min(most, len(scheduler._active()) or most)
    assert waited > 0
    for one, other in zip(asked, alone, strict=True):
        assert one.last.ids == other.ids
        assert one.last.text == other.text
        assert [each.chosen.id for each in one.last.logprobs] == [
            each.chosen.id for each in other.logprobs
        ]
        assert one.last.usage.prefilled + one.last.usage.cached == one.last.usage.prompt
    cache.flush()
    assert cache.check() == []


def test_a_prompt_that_has_to_wait_in_its_middle_counts_what_was_reused_once(without_context):
    sizes = ChunkSizes.fixed(32)
    scheduler = without_context(planner=ChunkPlanner(sizes=sizes), clock=itertools.count().__next__)
    first = Reader(request("One?", max_tokens=30))
    long = Reader(request("words " * 200, system=False))
    scheduler.add(first)
    while not scheduler._decode:
        scheduler.step()
    scheduler.add(long)
    while not (scheduler._prefilling and scheduler._prefilling[0].done > 100):
        scheduler.step()
    scheduler._admission = admission_of(1)
    scheduler.step()
    assert [sequence.reader for sequence in scheduler._waiting] == [long]
    scheduler._admission = Admission()
    together(scheduler)
    assert long.last.usage.cached < 10
    assert long.last.ids == together(without_context(), long.request)[0].last.ids


def test_what_does_not_fit_lets_some_pass_and_then_gets_its_turn(without_context):
    scheduler = without_context()
    scheduler._admission = admission_of(3000)
    first = Reader(request("One?", max_tokens=1000))
    scheduler.add(first)
    while not scheduler._decode:
        scheduler.step()
    large = Reader(request("words " * 500, system=False, max_tokens=2))  # over 2,500 tokens
    scheduler.add(large)
    small, count = [], itertools.count()
    while not (large.events and large.events[-1] is None):
        if sum(one.events[-1:] == [None] for one in small) == len(small):
            small.append(Reader(request(f"{next(count)}?", max_tokens=2)))
            scheduler.add(small[-1])
        if len(small) > MOST_PASSED + 3:
            first.gone_after = 0
        scheduler.step()
        begun = sum(bool(one.events) for one in small)
        assert large.events or begun <= MOST_PASSED
    together(scheduler)
    assert sum(bool(one.events) for one in small) > MOST_PASSED
    assert large.last.usage.generated
