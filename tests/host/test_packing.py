"""Packs are made while nobody asks: a step at a time, and not one more once somebody does."""

import asyncio

import worlds

from llm_mlx_promptcache.engine import pool
from llm_mlx_promptcache.host import packing


async def test_no_step_is_taken_once_somebody_asks_and_it_goes_on_later(monkeypatch):
    taken, begun = [], []

    def steps():
        begun.append(True)
        for number in range(9):
            taken.append(number)
            yield number

    asked = iter([True] * 4 + [False] + [True] * 9)
    monkeypatch.setattr(packing, "_steps", steps)
    work = packing.IdlePacking(lambda: next(asked))
    await work.work()
    assert taken == [0, 1, 2, 3]
    await work.work()
    assert taken == list(range(9))
    assert len(begun) == 1


async def test_what_fails_is_told_and_ends_nothing(monkeypatch, caplog):
    def steps():
        yield 1
        raise RuntimeError("something")

    monkeypatch.setattr(packing, "_steps", steps)
    await packing.IdlePacking(lambda: True).work()
    assert [record.getMessage() for record in caplog.records] == [
        "files of the disk cache could not be packed: something"
    ]


async def test_an_idle_host_packs_what_rested(place, monkeypatch):
    store = pool.disk_store()
    ids = worlds.turns(store, 6)
    await packing.IdlePacking(lambda: True).work()
    assert len(list(store.spans_folder.iterdir())) == 6
    monkeypatch.setattr(packing, "REST_SECONDS", -5.0)
    await packing.IdlePacking(lambda: True).work()
    assert len(list(store.spans_folder.iterdir())) == 1
    assert worlds.get(pool.disk_store(), ids) == len(ids)


async def test_nothing_is_packed_where_nothing_is_to_be_on_the_disk(place, monkeypatch):
    store = pool.disk_store()
    worlds.turns(store, 6)
    monkeypatch.setattr(packing, "REST_SECONDS", -5.0)
    monkeypatch.setenv(pool.DISK_SWITCH, "0")
    await packing.IdlePacking(lambda: True).work()
    assert len(list(store.spans_folder.iterdir())) == 6


async def test_it_ends_with_the_process_and_goes_on_for_a_moment(monkeypatch):
    taken = []

    def steps():
        for number in range(3):
            taken.append(number)
            yield number

    monkeypatch.setattr(packing, "_steps", steps)
    monkeypatch.setattr(packing, "LOOK_SECONDS", 0.0)
    over = asyncio.Event()
    idle = iter([True, True])

    def is_idle():
        if next(idle, None):
            return True
        over.set()
        return False

    work = packing.IdlePacking(is_idle)
    await work.run(over)
    assert taken == [0, 1]
    work.finish()
    assert taken == [0, 1, 2]
    fresh = packing.IdlePacking(lambda: True)
    fresh.finish()  # of a process that never looked: nobody waits for what it would begin
    assert taken == [0, 1, 2]
