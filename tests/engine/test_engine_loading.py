"""An engine's model as it is loaded: who is told how far it is, who waits, and when it is left."""

import threading

import pytest

from llm_mlx_promptcache.cache.identity import Identity
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.engine import Engine
from llm_mlx_promptcache.engine.events import Finished, Loading
from llm_mlx_promptcache.engine.one_machine import scheduler_here
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.engine.scheduler import Scheduler
from llm_mlx_promptcache.models.loading import load_model

REQUEST = GenerationRequest((Message("user", "One?"),), 4)


def loaded(folder, cache=None):
    return scheduler_here(
        load_model(str(folder)), Identity("tiny", "tiny"), cache or PromptCache("100MB")
    )


class HeldLoad:
    """A load that begins, and takes its steps once it may go on; it tells each."""

    def __init__(self, folder, steps):
        self._folder, self._steps = folder, steps
        self.begun, self.may_go_on, self.taken = threading.Event(), threading.Event(), 0

    def __call__(self, tell):
        for _ in range(self._steps):
            self.taken += 1
            self.begun.set()
            assert self.may_go_on.wait(60)
            tell(Loading("weights"))
        return loaded(self._folder)


def reading(engine):
    """A thread that reads an answer, and what it is told."""
    told = []
    thread = threading.Thread(target=lambda: told.extend(engine.generate(REQUEST)))
    thread.start()
    return thread, told


def ended_while_it_loads(engine, load, end):
    """A reader's events where an engine is ended, by `end`, in the middle of a load."""
    listening, told = reading(engine)
    assert load.begun.wait(60)
    ending = threading.Thread(target=end)
    ending.start()
    while not engine._closed:
        pass
    load.may_go_on.set()
    ending.join()
    listening.join()
    return told


def test_a_model_that_can_not_be_loaded_is_told_to_everyone_who_asks(engine_of, tmp_path):
    engine = engine_of(tmp_path / "nothing")
    for _ in range(2):
        with pytest.raises(ValueError, match="nothing"):
            list(engine.generate(REQUEST))


def test_who_waits_no_longer_for_memory_does_not_find_the_model_gone(folder, monkeypatch):
    loads, cache, may_go_on = [], PromptCache("100MB"), threading.Event()
    settle = Scheduler.settle

    def slow(scheduler, **last):
        assert may_go_on.wait(60)
        settle(scheduler, **last)

    def load(_):
        loads.append(folder)
        return loaded(folder, cache)

    monkeypatch.setattr(Scheduler, "settle", slow)
    engine = Engine(load)
    list(engine.generate(REQUEST))
    assert not engine.unload(timeout=0.01)
    may_go_on.set()
    list(engine.generate(REQUEST))
    assert len(loads) == 1
    assert engine.unload()
    list(engine.generate(REQUEST))
    assert len(loads) == 2
    engine.close()


def test_all_who_wait_for_a_model_hear_how_far_it_is(folder):
    """A reader that comes in the middle is told at once; one that left is told nothing more."""
    may_go_on, asked, heard = threading.Event(), threading.Event(), {}

    def load(tell):
        tell(Loading("first"))
        asked.set()
        assert may_go_on.wait(60)
        tell(Loading("second", 1, 2))
        return loaded(folder)

    engine = Engine(load)

    def listen(name, events):
        heard[name] = [event for event in events if isinstance(event, Loading)]

    early = threading.Thread(target=listen, args=("early", engine.generate(REQUEST)))
    early.start()
    assert asked.wait(60)
    late, left = engine.generate(REQUEST), engine.generate(REQUEST)
    assert next(left) == next(late) == Loading("first")
    left.close()
    beats = engine.beats
    may_go_on.set()
    listen("late", late)
    early.join()
    assert heard == {
        "early": [Loading("first"), Loading("second", 1, 2)],
        "late": [Loading("second", 1, 2)],
    }
    assert engine.beats > beats + 4  # one for what was told, at least one for each token
    assert not [event for event in engine.generate(REQUEST) if isinstance(event, Loading)]
    engine.close()


def test_c8_a_load_that_nobody_waits_for_ends_at_its_next_step_when_the_process_leaves(folder):
    load = HeldLoad(folder, 1000)
    engine = Engine(load)
    told = ended_while_it_loads(engine, load, engine._leave)  # as at the end of the process
    assert (load.taken, told) == (1, [])


def test_a_load_that_somebody_waits_for_goes_on_where_the_engine_is_closed(folder):
    load = HeldLoad(folder, 1)
    engine = Engine(load)
    told = ended_while_it_loads(engine, load, engine.close)
    assert isinstance(told[-1], Finished)


def test_what_a_load_that_failed_told_is_not_told_to_the_next_request(folder):
    def load(tell):
        tell(Loading("first"))
        raise ValueError("no such model")

    engine = Engine(load)
    for _ in range(2):
        events = engine.generate(REQUEST)
        assert next(events) == Loading("first")
        with pytest.raises(ValueError, match="no such model"):
            next(events)
    assert engine.beats >= 4
    engine.close()
