"""A server on the test's own loop: what it takes, whom it waits for, and when it leaves.

Its clock is played, its engines are this process's.
"""

import asyncio
import os
import shutil
import threading

import pytest
from hosts import events, generate
from served import BARE, PS

from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine import pool, wire
from llm_mlx_promptcache.engine.events import Finished, Loading, Progress, TextDelta
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.host import connections


def said(told):
    """The events of an answer but those that tell of the way to it, and its end in short."""
    *events_, last = [event for event in told if not isinstance(event, (Loading, Progress))]
    assert isinstance(last, Finished)
    return events_, last.ids, last.text, last.reason, last.usage.cached + last.usage.prefilled


async def test_law_15_an_answer_is_what_the_engine_says(client, full, folder):
    asker = await client(full, generate(folder, "Hello", max_tokens=20))
    welcome, *frames, end = await asker.frames()
    assert welcome["welcome"]["pid"] == os.getpid()
    assert end == {"end": True}
    await asyncio.to_thread(pool.close_engines)
    request = GenerationRequest((Message("user", "Hello"),), max_tokens=20)
    engine = pool.engine_for(str(folder))
    alone = await asyncio.to_thread(lambda: list(engine.generate(request)))
    assert said(events(frames)) == said(alone)


async def test_l14_a_request_is_read_by_another_thread(client, full, folder, monkeypatch):
    readers, inner = set(), wire.from_json

    def noted(data):
        readers.add(threading.get_ident())
        return inner(data)

    monkeypatch.setattr(connections.wire, "from_json", noted)
    *_, end = await (await client(full, generate(folder))).frames()
    assert end == {"end": True}
    assert readers
    assert threading.get_ident() not in readers


async def test_a_token_wakes_no_event_loop(client, full, folder, monkeypatch):
    """Each would cost the engine's thread its turn at the interpreter, and the reader two hops."""
    await (await client(full, generate(folder))).frames()  # loaded
    loop = asyncio.get_running_loop()
    woken, inner = [], loop.call_soon_threadsafe

    def wake(callback, *given, **more):
        woken.append(callback)
        return inner(callback, *given, **more)

    monkeypatch.setattr(loop, "call_soon_threadsafe", wake)
    counts = []
    for tokens in (5, 50):
        woken.clear()
        asker = await client(full, generate(folder, max_tokens=tokens, drafts=False))
        told = events(await asker.frames())
        assert told[-1].usage.generated == tokens
        assert sum(isinstance(event, TextDelta) for event in told) > tokens / 2
        counts.append(len(woken))
    assert counts[0] == counts[1]


async def test_an_event_that_can_not_be_sent_ends_its_answer_alone(
    client, full, folder, monkeypatch
):
    inner = wire.to_json

    def broken(value):
        if isinstance(value, TextDelta) and not refused:
            refused.append(value)
            raise TypeError("this is no JSON")
        return inner(value)

    refused = []
    monkeypatch.setattr(connections.wire, "to_json", broken)
    *_, told = await (await client(full, generate(folder, max_tokens=500))).frames()
    assert told == {"error": {"kind": "TypeError", "text": "this is no JSON"}}
    assert (await (await client(full, generate(folder))).frames())[-1] == {"end": True}
    engine = pool.engines()[str(folder)]
    assert await asyncio.to_thread(engine.unload)  # nothing is under way


async def test_a_second_answer_prefills_its_last_token_only(client, full, folder):
    for _ in range(2):
        asker = await client(full, generate(folder))
        *_, last, _end = await asker.frames()
    assert events([last])[0].usage.prefilled == 1


async def test_law_15_a_model_whose_files_changed_is_what_a_new_process_would_find(
    client, full, tiny_llama, tmp_path
):
    mine, other = tmp_path / "model", tiny_llama(seed=7)
    shutil.copytree(tiny_llama(), mine)
    told = []
    for folder in (mine, other, mine):
        if len(told) == 2:
            shutil.copy(other / "model.safetensors", mine)
        *_, last, _end = await (await client(full, generate(folder))).frames()
        told.append(events([last])[0].ids)
    assert told[0] != told[1] == told[2]


async def test_a_client_of_any_build_may_ask_after_it_and_for_no_answer(client, folder):
    asker = await client(BARE, PS)
    welcome, told, end = await asker.frame(), await asker.frame(), await asker.frame()
    assert end is None
    assert welcome["welcome"]["busy"] == 0
    assert (told["result"]["pid"], told["result"]["stage"]) == (os.getpid(), "serving")
    _, refused = await (await client(BARE, generate(folder))).frames()
    assert refused["error"]["kind"] == "ValueError"


@pytest.mark.parametrize("part", ["build", "settings", "environment"])
async def test_a_client_of_another_build_is_refused_and_told_how_many_are_busy(
    client, full, folder, gate, part
):
    other = {**full["hello"], part: {**full["hello"][part]}}
    other[part][next(iter(other[part]))] = "another"
    (refused,) = await (await client({"hello": other}, generate(folder))).frames()
    assert (refused["busy"], refused["stopping"]) == (0, False)
    gate.held_from = 0
    asker = await client(full, generate(folder))
    await gate.reached()
    (refused,) = await (await client({"hello": other})).frames()
    assert (refused["busy"], refused["stopping"]) == (1, False)
    assert refused["refused"]
    gate.open()
    assert (await asker.frames())[-1] == {"end": True}


async def test_another_protocol_is_refused_even_what_any_build_may_ask(client):
    (refused,) = await (await client({"hello": {"protocol": 2}}, PS)).frames()
    assert "protocol" in refused["refused"]


async def test_beats_tell_that_the_engine_works(client, full, folder, gate, monkeypatch):
    monkeypatch.setattr(connections, "_TICK_SECONDS", 0.0)
    asker = await client(full, generate(folder, max_tokens=100))
    beats = [frame["beat"] for frame in await asker.frames() if "beat" in frame]
    assert beats == sorted(set(beats))
    assert beats


async def test_an_engine_that_hangs_has_no_beats(served, client, full, folder, gate, monkeypatch):
    monkeypatch.setattr(connections, "_TICK_SECONDS", 0.0)
    gate.held_from = 8
    asker = await client(full, generate(folder, max_tokens=100))
    await gate.reached()
    (connection,) = served._open
    for _ in range(100):
        await asyncio.sleep(0)
    told = connection._outbox.written
    for _ in range(1000):
        await asyncio.sleep(0)
    assert connection._outbox.written == told
    gate.open()
    assert (await asker.frames())[-1] == {"end": True}
