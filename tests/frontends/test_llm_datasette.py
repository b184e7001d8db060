"""Datasette with datasette-llm: many prompts on one event loop, which is never blocked."""

import asyncio
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from datasette.app import Datasette
from datasette_llm import LLM

from llm_mlx_promptcache.config import Settings, cache_folder, save_settings
from llm_mlx_promptcache.engine import pool
from llm_mlx_promptcache.engine.scheduler import Scheduler

DOCS = Path(__file__).parent.parent.parent / "docs"
INSTRUCTION = "You sort what people write. " * 12
LONG = {"type": "string", "minLength": 1500}


@pytest.fixture
def model_folder(own_cache, tiny_llama, monkeypatch, tmp_path):
    """A tiny model is the default one; llm's own folder is an empty one."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    folder = str(tiny_llama())
    save_settings(Settings(default_model=folder))
    return folder


def in_datasette(story):
    """Run `story(model)` with the model that Datasette's plugins get, on one event loop."""

    async def run():
        config = {"plugins": {"datasette-llm": {"default_model": "mlx-cached"}}}
        datasette = Datasette(memory=True, config=config)
        try:
            await datasette.invoke_startup()
            return await story(await LLM(datasette).model(purpose="enrichments"))
        finally:
            datasette.close()

    return asyncio.run(run())


class Ticking:
    """Counts how often the loop came round; `ticked` is set each time."""

    def __init__(self):
        self.ticks, self.ticked = 0, threading.Event()

    async def __aenter__(self):
        self._task = asyncio.create_task(self._tick())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *error):
        self._task.cancel()

    async def _tick(self):
        while True:
            await asyncio.sleep(0.001)
            self.ticks += 1
            self.ticked.set()


def test_eight_prompts_at_once(model_folder):
    questions = [f"What is the number {number}?" for number in range(8)]

    async def story(model):
        await model.prompt("Hello", max_tokens=1)  # llm's and our first imports are done by now
        async with Ticking() as ticking:
            asked = [model.prompt(question, max_tokens=24) for question in questions]
            answers = await asyncio.gather(*asked)
        alone = [await model.prompt(question, max_tokens=24, cache=False) for question in questions]
        return ticking, [await a.text() for a in answers], [await a.text() for a in alone]

    ticking, together, alone = in_datasette(story)
    assert together == alone
    assert ticking.ticks > 10


def test_a_loaded_model_does_not_hold_up_the_loop(model_folder, monkeypatch):
    """The loop comes round between any two steps of the model: each waits until it did."""
    ticking, late, step = Ticking(), [], Scheduler.step

    def watched(running):
        if ticking.ticks:
            ticking.ticked.clear()
            if not ticking.ticked.wait(60):
                late.append(running)
        step(running)

    monkeypatch.setattr(Scheduler, "step", watched)

    async def story(model):
        await model.prompt("Hello", max_tokens=1)
        async with ticking:
            asked = [model.prompt(f"Number {number}", max_tokens=30) for number in range(8)]
            await asyncio.gather(*asked)
            begun = ticking.ticks
        ticking.ticks = 0  # nothing waits any more
        ticking.ticked.set()
        return begun

    assert in_datasette(story) >= 30
    assert late == []


def test_the_loop_goes_on_while_the_model_loads(model_folder, monkeypatch):
    loading, go_on = threading.Event(), threading.Event()
    load = pool._load

    def slow(*asked):
        loading.set()
        assert go_on.wait(60)
        return load(*asked)

    monkeypatch.setattr(pool, "_load", slow)

    async def story(model):
        task = asyncio.create_task(model.prompt("Hello", max_tokens=2))
        async with Ticking() as ticking:
            while not loading.is_set() or ticking.ticks < 20:
                assert not task.done()
                await asyncio.sleep(0.001)
        assert not task.done()
        go_on.set()
        return await (await task).usage()

    assert in_datasette(story).output == 2


def test_cancelled_prompts_are_freed(model_folder, monkeypatch):
    steps, step = [], Scheduler.step

    def counted(running):
        step(running)
        steps.append(running)

    monkeypatch.setattr(Scheduler, "step", counted)

    async def story(model):
        await model.prompt("Hello", max_tokens=1)
        tasks = [
            asyncio.create_task(model.prompt(f"Question {number}", schema=LONG, max_tokens=1900))
            for number in range(4)
        ]
        before = len(steps)
        while len(steps) < before + 12:
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended)
        return await (await model.prompt("Hello", max_tokens=1)).usage()

    usage = in_datasette(story)
    assert usage.details["prefilled"] == 1
    cache = pool.shared_cache()
    pool.close_engines()
    # What they had computed is kept, and it is far from all that they were asked for.
    assert cache.stats()["memory"]["tokens"] < 4 * LONG["minLength"] / 2
    cache.check()


@pytest.mark.parametrize("at_once", [1, 5])
def test_rows_over_one_long_instruction_prefill_it_once(model_folder, at_once):
    rows = [f"row {number}: something that was said" for number in range(50)]

    async def story(model):
        usages = []
        for start in range(0, len(rows), at_once):
            asked = [
                model.prompt(row, system=INSTRUCTION, max_tokens=2)
                for row in rows[start : start + at_once]
            ]
            usages += [await answer.usage() for answer in await asyncio.gather(*asked)]
        return usages

    usages = in_datasette(story)
    assert len(usages) == 50
    instruction = min(usage.details["cached"] for usage in usages[1:])
    assert instruction > len(INSTRUCTION) / 2
    first, *others = sorted(usages, key=lambda usage: usage.details["cached"])
    assert first.details["cached"] == 0
    prefilled = sum(usage.details["prefilled"] for usage in usages)
    own = sum(usage.input - instruction for usage in usages)
    assert prefilled <= instruction + own
    assert all(usage.details["prefilled"] < 60 for usage in others)


def test_the_page_of_the_index_answers_its_questions(quick_home):
    """docs/datasette-index.yaml over the index that a real answer left."""
    quick_home.llm("-m", "mlx-cached", "-o", "max_tokens", "4", "Hello")
    index = cache_folder() / "index.sqlite"
    config = yaml.safe_load((DOCS / "datasette-index.yaml").read_text())
    with closing(sqlite3.connect(f"file:{index}?mode=ro", uri=True)) as database:
        for query in config["databases"]["index"]["queries"].values():
            assert database.execute(query["sql"]).fetchall()
