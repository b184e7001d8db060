"""P8: requests that were asked before something was forgotten bring none of it back."""

import gc
import weakref

import pytest
from readers import Reader, planner_of, request
from test_admission import admission_of

from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.engine.engine import Engine, _Job
from llm_mlx_promptcache.engine.events import Progress


def held(cache):
    return cache.stats()["memory"]["bytes"]


@pytest.fixture
def at_work(scheduler_of):
    """A scheduler with its cache, and three requests that begin alike."""
    cache = PromptCache("100MB")
    scheduler = scheduler_of(cache, planner=planner_of(32))
    asked = [Reader(request(text, max_tokens=30)) for text in ("One?", "Two?", "Three?")]
    for one in asked:
        scheduler.add(one)
    return scheduler, cache, asked


def finish(scheduler):
    while scheduler.busy:
        scheduler.step()
    scheduler.settle(last=True)


def test_p8_what_waited_when_it_was_forgotten_is_not_kept(at_work):
    scheduler, cache, asked = at_work
    cache.forget()
    finish(scheduler)
    assert held(cache) == 0
    assert all(one.last.ids for one in asked)
    scheduler.add(Reader(request("Four?")))
    finish(scheduler)
    assert held(cache) > 0


def test_p8_what_waited_is_meant_by_its_model_s_name(scheduler_of):
    """Nothing of its namespace was there before."""
    cache = PromptCache("100MB")
    scheduler = scheduler_of(cache)
    scheduler.kv._name = "one"
    for salt in ("a", "b"):
        scheduler.add(Reader(request("One?", cache_salt=salt)))
    cache.forget(model="another")
    scheduler.step()
    cache.forget(model="one")
    finish(scheduler)
    assert held(cache) == 0


def test_errands_are_done_between_steps_and_their_errors_are_the_asker_s(scheduler_of):
    engine = Engine(lambda _: scheduler_of())

    def wrong(scheduler):
        raise ValueError("wrong")

    try:
        assert engine.between_steps(wrong) is None  # nothing is loaded
        for event in engine.generate(request("One?", max_tokens=200)):
            if isinstance(event, Progress):
                assert engine.between_steps(lambda scheduler: scheduler.busy) is not None
        with pytest.raises(ValueError, match="wrong"):
            engine.between_steps(wrong)
        assert engine.between_steps(lambda scheduler: scheduler.kv.forget()).left == ()
        assert engine.unload()
        assert engine.between_steps(wrong) is None
    finally:
        engine.close()
    assert engine.between_steps(wrong) is None


def test_p8_what_is_made_to_wait_again_is_not_kept_either(at_work):
    """It begins anew, with other layers, behind what it has said already."""
    scheduler, cache, asked = at_work
    while len(scheduler._decode) < len(asked):
        scheduler.step()
    cache.forget()
    assert held(cache) == 0
    scheduler._admission = admission_of(scheduler._decode._batches.tokens - 1)
    scheduler.step()
    assert len(scheduler._waiting) > 0
    finish(scheduler)
    assert held(cache) == 0
    assert all(one.last.ids for one in asked)


def test_p8_an_idle_engine_holds_no_request(scheduler_of):
    """A request is text of a conversation; a waiting thread must not have it in a name."""
    scheduler = scheduler_of()
    engine = Engine(lambda _: scheduler)
    asked = request("One?")
    events = []
    engine._jobs.put(_Job(asked, events.append))
    gone = weakref.ref(asked)
    del asked
    working, _ = engine._turn(None, closing=False)
    while working.busy:
        working, _ = engine._turn(working, closing=False)
    assert events[-1] == (None,)
    events.clear()
    gc.collect()
    assert gone() is None
