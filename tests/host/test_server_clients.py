"""Clients that a server is not meant for: garbage, silence, others, too many, who never reads."""

import asyncio
import os
import threading

import pytest
from hosts import events, generate
from served import BARE, PS, conversations, settled

from llm_mlx_promptcache.engine import pool
from llm_mlx_promptcache.engine.events import Finished, Progress, TextDelta
from llm_mlx_promptcache.host import connections, outbox, server
from llm_mlx_promptcache.host.frames import MAX_HELLO, encode


@pytest.mark.parametrize(
    "ask",
    [
        {"ask": "nothing we know"},
        {"ask": ["ps"]},
        {"ask": None},
        {},
        {"ask": "generate"},
        {"ask": "generate", "model": "", "request": {}, "keep": 1},
        {"ask": "generate", "model": "m" * 100_000, "request": {}, "keep": 1},
        {"ask": "generate", "model": 5, "request": {}, "keep": 1},
        {"ask": "generate", "model": "m", "request": {}, "keep": 1},
        {"ask": "generate", "model": "m", "request": [], "keep": 1},
        {"ask": "generate", "model": "m", "request": {"is": "Usage", "of": {}}, "keep": 1},
        {"ask": "generate", "model": "m", "request": {"is": "Timings", "of": {}}, "keep": -1},
        {"ask": "generate", "model": "m", "request": {"is": "os", "of": {}}, "keep": "1"},
    ],
)
async def test_an_ask_that_makes_no_sense_is_an_error_and_no_more(client, full, ask):
    _, told = await (await client(full, ask)).frames()
    assert told["error"]["kind"] in ("ValueError", "TypeError")
    _, told = await (await client(BARE, PS)).frames()
    assert (told["result"]["busy"], told["result"]["models"]) == (0, [])


async def test_references_that_name_no_model_leave_nothing_behind(client, full, tmp_path):
    for number in range(5):
        ask = generate(tmp_path / f"no model {number}")
        _, *_, told = await (await client(full, ask)).frames()
        assert told["error"]["kind"] == "ModelLoadError"
    await settled()
    assert pool.engines() == {}
    while any(thread.name == "mlx-engine" for thread in threading.enumerate()):
        await asyncio.sleep(0.001)


GARBAGE = {
    "1 GB": (1 << 30).to_bytes(4, "big"),
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no JSON": b"\0\0\0\3{a}",
    "a list": b"\0\0\0\2[]",
    "nested": (200_000).to_bytes(4, "big") + b"[" * 200_000,
    "too long for a hello": encode({"hello": "x" * MAX_HELLO}),
    "half": encode(BARE)[:-3],
    "nothing": b"",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("before", [b"", "hello"])
async def test_garbage_ends_its_connection_and_nothing_else(
    client, full, folder, gate, garbage, before
):
    gate.held_from = 2
    asker = await client(full, generate(folder))
    await gate.reached()
    bad = await client()
    if before:
        bad.send(full)
        assert "welcome" in await bad.frame()
    bad.writer.write(garbage)
    if garbage in (GARBAGE["half"], GARBAGE["nothing"], GARBAGE["too long for a hello"]):
        bad.writer.write_eof()
    told = await bad.frames()
    # A good frame that is no hello, or no ask, is answered as such.
    assert all(set(frame) <= {"refused", "busy", "stopping", "error"} for frame in told)
    gate.open()
    assert (await asker.frames())[-1] == {"end": True}


async def test_who_sends_nothing_is_dropped(client, full, monkeypatch):
    silent = await client(full)
    assert "welcome" in await silent.frame()
    monkeypatch.setattr(connections, "_FRAME_SECONDS", 0.0)
    assert await (await client()).frames() == []
    monkeypatch.setattr(connections, "_FRAME_SECONDS", 60.0)
    silent.send(PS)
    assert len(await silent.frames()) == 1


async def test_half_a_large_frame_is_not_waited_for_for_ever(client, full, monkeypatch):
    monkeypatch.setattr(connections, "_SLOWEST", 1 << 60)
    slow = await client(full)
    assert "welcome" in await slow.frame()
    monkeypatch.setattr(connections, "_FRAME_SECONDS", 0.0)
    slow.writer.write((1 << 20).to_bytes(4, "big") + b"{")
    assert await slow.frames() == []


async def test_large_frames_are_read_one_at_a_time(served, client, full):
    """Each holds what it has read: two hundred of 64 MB would be 12 GB."""
    one, other = await client(full), await client(full)
    for each in (one, other):
        assert "welcome" in await each.frame()
    large = encode({"ask": "x" * (1 << 20)})
    one.writer.write(large[:-1])
    await one.writer.drain()
    while not served.large_frame.locked():
        await asyncio.sleep(0)
    other.writer.write(large)
    small = await client(BARE, PS)
    assert len(await small.frames()) == 2  # small ones pass
    assert not other.reader._buffer
    one.writer.write(large[-1:])
    for each in (one, other):
        assert (await each.frames())[0]["error"]["kind"] == "ValueError"


async def test_another_user_is_told_nothing(client, full, monkeypatch):
    monkeypatch.setattr(server, "peer_uid", lambda sock: os.geteuid() + 1)
    stranger = await client(full, PS)
    assert await stranger.frames() == []

    def unknown(sock):
        raise OSError("nobody tells")

    monkeypatch.setattr(server, "peer_uid", unknown)
    assert await (await client(full, PS)).frames() == []


async def test_so_many_are_welcomed_and_the_next_is_told(client, monkeypatch):
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 3)
    welcomed = [await client(BARE) for _ in range(3)]
    for each in welcomed:
        assert "welcome" in await each.frame()
    (refused,) = await (await client(BARE)).frames()
    assert refused["refused"] == "it has 3 connections"
    assert refused["busy"] == 1  # or its client would ask it to end
    welcomed[0].close()
    welcomed[1].send(PS)
    assert len(await welcomed[1].frames()) == 1
    while len(conversations()) > 1:
        await asyncio.sleep(0)
    assert len(await (await client(BARE, PS)).frames()) == 2


@pytest.mark.parametrize("held_from", [1, 12], ids=["in prefill", "in its answer"])
async def test_a_client_that_goes_away_frees_its_request_within_one_step(
    client, full, folder, gate, monkeypatch, held_from
):
    gate.held_from = held_from
    text = "the capital of " * (60 if held_from == 1 else 1)
    asker = await client(full, generate(folder, text, max_tokens=500))
    await gate.reached()
    frames = [await asker.frame()]
    while not isinstance(frames[-1], Progress if held_from == 1 else TextDelta):
        frames += events([await asker.frame()])
    asker.close()
    await settled()
    at = gate.steps
    gate.open()
    engine = pool.engines()[str(folder)]
    assert await asyncio.to_thread(engine.unload)  # once nothing is under way
    assert gate.steps - at <= 1


async def computed(served):
    """Wait until no answer is under way, and some of one waits for its reader."""
    while not served._open or served._life.busy or not pool.engines():
        await asyncio.sleep(0.001)
    (connection,) = served._open
    while not (waiting := connection._outbox.waiting):
        await asyncio.sleep(0.001)
    return waiting


@pytest.mark.parametrize("seconds", [10 * outbox.STALLED_SECONDS, 3600])
async def test_who_does_not_read_finds_the_whole_answer_as_long_as_the_host_would_stay(
    served, client, clock, full, folder, monkeypatch, seconds
):
    """A client that was stopped: less than 4 MB wait for it."""
    monkeypatch.setattr(connections, "_TICK_SECONDS", 0.0)
    asker = await client(full, generate(folder, max_tokens=400, logprobs=20, keep=3600))
    assert "welcome" in await asker.frame()
    asker.writer.transport.pause_reading()
    assert await computed(served) < outbox.WAITING_BYTES
    clock.now += seconds
    for _ in range(100):
        await asyncio.sleep(0)
    if seconds == 3600:
        await settled()
        return
    assert served._open
    asker.writer.transport.resume_reading()
    *frames, end = await asker.frames()
    assert isinstance(events(frames)[-1], Finished)
    assert end == {"end": True}


async def test_who_never_reads_is_dropped_and_its_request_freed(
    served, client, clock, full, folder, gate, monkeypatch
):
    monkeypatch.setattr(connections, "_TICK_SECONDS", 0.0)
    monkeypatch.setattr(outbox, "WAITING_BYTES", 4 << 10)
    asker = await client(full, generate(folder, max_tokens=1900, logprobs=20))
    while not isinstance(await asker.frame(), dict):
        pass
    asker.writer.transport.pause_reading()
    (connection,) = served._open
    while connection._outbox.waiting <= 4 << 10:
        await asyncio.sleep(0.001)
    clock.now += outbox.STALLED_SECONDS + 1
    await settled()
    assert served._life.busy == 0
    at = gate.steps
    engine = pool.engines()[str(folder)]
    while not await asyncio.to_thread(engine.unload):  # not while it answers
        pass
    assert gate.steps - at <= 2  # one that was under way, and the next finds it gone
