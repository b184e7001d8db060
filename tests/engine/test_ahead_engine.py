"""An engine that stays works ahead on its thread, and gives way within a chunk."""

import dataclasses
import json
import os
import subprocess
import threading

import forks
import pytest
from pauses import QUESTION, REWRITTEN, asked, own_words, replied, rewriting, scheduler_over
from readers import Reader, planner_of

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.engine import engine as engines
from llm_mlx_promptcache.engine.engine import Engine
from llm_mlx_promptcache.engine.events import Finished
from llm_mlx_promptcache.models.loading import load_model


class Interrupted:
    """A model in whose first chunk that nobody asked for something happens."""

    def __init__(self, model):
        self._model = model
        self.happens = None
        self.reading = False

    def __call__(self, tokens, cache=None):
        if self.reading and self.happens is not None:
            happens, self.happens = self.happens, None
            happens()
        return self._model(tokens, cache=cache)

    def __getattr__(self, name):
        return getattr(self._model, name)


class World:
    """An engine that begins to work ahead as soon as nothing waits, and its cache."""

    def __init__(self, loaded, store=None):
        self.loaded = loaded
        self.cache = PromptCache("500MB", store)
        self.model = Interrupted(loaded.model)
        self.scheduler, self.done = None, threading.Event()
        playing = dataclasses.replace(loaded, model=self.model)

        def load(_):
            self.scheduler = scheduler_over(playing, self.cache, planner=planner_of(8))
            step = self.scheduler.ahead.step

            def stepped():
                self.model.reading = True
                step()
                self.model.reading = False
                if not self.scheduler.ahead.left:
                    self.done.set()

            self.scheduler.ahead.step = stepped
            return self.scheduler

        self.engine = Engine(load)

    def ask(self, request):
        *_, last = self.engine.generate(request)
        assert isinstance(last, Finished)
        return last

    @property
    def computed(self):
        return self.cache.stats()["tokens_ahead"]


@pytest.fixture
def world(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "QUIET", 0)
    made = World(rewriting(load_model(str(tiny_llama()))), DiskStore(tmp_path))
    yield made
    made.engine.close()
    assert made.cache.check() == []
    assert DiskStore(tmp_path).check() == []


def test_who_goes_on_after_reading_prefills_own_words_only(world):
    first = world.ask(asked(QUESTION))
    assert world.done.wait(60)
    following = asked(QUESTION, replied(first), "And three?")
    second = world.ask(following)
    assert second.usage.prefilled == own_words(world.scheduler, following)


def test_a_request_waits_for_no_more_than_the_chunk_that_runs(world):
    first, told = Reader(asked(QUESTION)), threading.Event()
    outputs, computed = [], []

    def come():
        assert told.wait(60)
        computed.append(world.computed)
        following = asked(QUESTION, replied(first.last), "And three?")
        world.engine._submit(engines._Job(following, outputs.extend))

    world.model.happens = come
    for event in world.engine.generate(first.request):
        first.send(event)
    first.send(None)
    told.set()
    assert world.done.wait(60)  # also with what follows the second answer
    *_, second, end = outputs
    assert end is None
    assert isinstance(second, Finished)
    assert computed == [0]
    assert second.usage.cached == first.last.usage.prompt + 8


@pytest.mark.parametrize("what", ["close", "unload"])
def test_an_end_waits_for_no_more_than_the_chunk_that_runs(world, tmp_path, what):
    asked_to = engines._Unload()
    came = threading.Event()

    def come():
        world.engine._jobs.put(None if what == "close" else asked_to)
        came.set()

    world.model.happens = come
    first = world.ask(asked(QUESTION))
    assert came.wait(60)
    if what == "unload":
        assert asked_to.wait(60)
        assert not world.engine.loaded
    world.engine.close()
    assert world.computed == 8
    assert not world.done.is_set()
    # What was computed of it is kept as all else is.
    later = World(world.loaded, DiskStore(tmp_path))
    second = later.ask(asked(QUESTION, replied(first), "And three?"))
    later.engine.close()
    assert second.usage.cached == first.usage.prompt + 8


def test_nothing_is_begun_before_it_was_quiet_and_an_end_waits_for_no_quiet(world, monkeypatch):
    monkeypatch.setattr(engines, "QUIET", 3600)
    world.ask(asked(QUESTION))
    world.engine.close()
    assert world.computed == 0


def test_where_another_engine_answers_nothing_is_begun(world, monkeypatch):
    monkeypatch.setattr(engines, "QUIET", 3600)
    world.ask(asked(QUESTION))
    world.engine.close()
    taken = []

    class Waiting:
        busy = False
        rested = False
        packing = None

        @staticmethod
        def rest():
            taken.append("rest")

        class ahead:
            left = begun = True

            @staticmethod
            def step():
                taken.append("step")

    other = Engine(lambda _: None)
    monkeypatch.setattr(engines, "_answering", {other})
    world.engine._use_quiet(Waiting())
    assert (taken, world.engine._patience(Waiting())) == ([], 3600)
    engines._answering.clear()
    world.engine._use_quiet(Waiting())
    assert (taken, world.engine._patience(Waiting())) == (["step"], 0)
    Waiting.ahead.begun = False
    assert world.engine._patience(Waiting()) == 3600
    Waiting.ahead.left = False
    assert world.engine._patience(Waiting()) == engines.IDLE
    world.engine._use_quiet(Waiting())
    assert taken == ["step", "rest"]
    Waiting.rested = True
    assert world.engine._patience(Waiting()) is None


def test_who_answers_is_known_while_it_does(world):
    before = set(engines._answering)
    events = world.engine.generate(asked(QUESTION))
    next(events)
    assert world.engine in engines._answering
    for _ in events:
        pass
    assert world.done.wait(60)
    assert engines._answering == before


LEAVING = """
import sys
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine import engine
from llm_mlx_promptcache.engine.pool import engine_for
from llm_mlx_promptcache.engine.request import GenerationRequest
engine.QUIET = 0
request = GenerationRequest((Message("user", "What comes after two? " * 40),), 60)
*_, last = engine_for(sys.argv[1]).generate(request)
"""


def test_a_process_that_leaves_while_it_works_ahead_ends_well(tiny_llama, tmp_path):
    folder = tiny_llama()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = REWRITTEN
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    environment = {**os.environ, "LLM_MLX_CACHED_HOME": str(tmp_path), "LLM_MLX_CACHED_AHEAD": "1"}
    command = [forks.python(), "-c", LEAVING, str(folder)]
    for _ in range(3):
        run = subprocess.run(command, env=environment, timeout=60, capture_output=True, text=True)
        assert (run.returncode, run.stderr) == (0, "")
    assert DiskStore(tmp_path / "cache").check() == []
