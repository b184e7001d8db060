"""A server on the test's own loop: what it takes, whom it waits for, and when it leaves.

Its clock is played, its engines are this process's.
"""

import asyncio
import dataclasses
import os
import shutil
import threading
import time

import pytest
from hosts import LONG, Client, events, generate

from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine import pool
from llm_mlx_promptcache.engine.events import Finished, Loading, Progress, TextDelta
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.engine.scheduler import Scheduler
from llm_mlx_promptcache.host import connections, outbox, server
from llm_mlx_promptcache.host.frames import MAX_HELLO, encode
from llm_mlx_promptcache.host.hello import bare_hello, hello
from llm_mlx_promptcache.host.life import Signs, Stage

PS = {"ask": "ps"}


@pytest.fixture(scope="module")
def folder(tiny_llama):
    return tiny_llama()


@pytest.fixture
def full(place):
    """The hello of a client of the same build."""
    return {"hello": hello(place)}


BARE = {"hello": bare_hello()}


def conversations():
    """The tasks that serve connections just now."""
    return {
        task
        for task in asyncio.all_tasks()
        if "_accept" in getattr(task.get_coro(), "__qualname__", "")
    }


async def settled():
    """Wait until nobody is served any more."""
    async with asyncio.timeout(LONG):
        while serving := conversations():
            await asyncio.wait(serving)


class Gate:
    """Holds the engine's thread before its steps, from a certain one on, until it is opened."""

    def __init__(self, monkeypatch):
        self.steps = 0
        self.held_from = None
        self._open = threading.Event()
        self._waiting = threading.Event()
        step = Scheduler.step

        def held(scheduler):
            if self.held_from is not None and self.steps >= self.held_from:
                self._waiting.set()
                self._open.wait(60)
            self.steps += 1
            step(scheduler)

        monkeypatch.setattr(Scheduler, "step", held)

    async def reached(self):
        """Wait until the engine stands before that step."""
        assert await asyncio.to_thread(self._waiting.wait, 60)

    def open(self):
        """Let it go on."""
        self._open.set()


@pytest.fixture
def gate(monkeypatch):
    made = Gate(monkeypatch)
    yield made
    made.open()


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
    while not (waiting := connection._outbox._writer.transport.get_write_buffer_size()):
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
    transport = connection._outbox._writer.transport
    while transport.get_write_buffer_size() <= 4 << 10:
        await asyncio.sleep(0.001)
    clock.now += outbox.STALLED_SECONDS + 1
    await settled()
    assert served._life.busy == 0
    at = gate.steps
    engine = pool.engines()[str(folder)]
    while not await asyncio.to_thread(engine.unload):  # not while it answers
        pass
    assert gate.steps - at <= 2  # one that was under way, and the next finds it gone


async def test_a_host_that_is_stopped_finishes_answers_and_takes_nobody(
    served, client, full, folder, gate
):
    gate.held_from = 5
    asker = await client(full, generate(folder, max_tokens=30))
    await gate.reached()
    served.stop("the test says so")
    (refused,) = await (await client(full, PS)).frames()
    assert refused == {
        "refused": "it is ending: the test says so",
        "busy": 1,
        "stopping": True,
    }
    _, told = await (await client(BARE, PS)).frames()
    assert told["result"]["stage"] == Stage.DRAINING.value
    gate.open()
    *_, last, end = await asker.frames()
    assert events([last])[0].usage.generated == 30
    assert end == {"end": True}
    await served.over


async def test_who_comes_while_it_flushes_is_told_so(served, client, full, folder, monkeypatch):
    assert (await (await client(full, generate(folder))).frames())[-1] == {"end": True}
    flushing, let_go = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def flush():
        loop.call_soon_threadsafe(flushing.set)
        assert let_go.wait(LONG)
        pool.close_engines()

    monkeypatch.setattr(server, "close_engines", flush)
    served.stop("the test says so")
    async with asyncio.timeout(LONG):
        await flushing.wait()
    (refused,) = await (await client(full, generate(folder))).frames()
    assert refused["stopping"]
    _, told = await (await client(BARE, PS)).frames()
    assert told["result"]["stage"] == Stage.LEAVING.value
    let_go.set()
    await served.over
    assert pool.engines() == {}  # all is on the disk before the next host may begin


async def test_what_does_not_end_in_time_is_told_why(served, client, clock, full, folder, gate):
    gate.held_from = 5
    asker = await client(full, generate(folder, max_tokens=1000))
    waits = await client(full)
    assert "welcome" in await waits.frame()  # and asks nothing
    await gate.reached()
    served.stop("the test says so")
    clock.now += 100
    served._look()
    *_, told = await asker.frames()
    assert told == {"error": {"kind": "HostStopped", "text": "the test says so"}}
    assert await waits.frames() == []
    gate.open()
    await served.over


async def test_stop_is_asked_over_the_socket_and_may_spare_who_is_busy(
    served, client, full, folder, gate
):
    gate.held_from = 0
    asker = await client(full, generate(folder))
    await gate.reached()
    _, told = await (await client(BARE, {"ask": "stop", "why": "x", "idle": True})).frames()
    assert "error" in told
    assert served._life.stage is Stage.SERVING
    _, told = await (await client(BARE, {"ask": "stop", "why": "an upgrade"})).frames()
    assert (told["result"]["stage"], told["result"]["busy"]) == (Stage.DRAINING.value, 1)
    gate.open()
    assert (await asker.frames())[-1] == {"end": True}
    await served.over
    assert served._life.why == "an upgrade"


@pytest.mark.parametrize("turns", range(12))
async def test_a_request_that_arrives_as_the_host_leaves_is_answered_or_sent_away(
    served, client, full, folder, turns
):
    """Never neither: whoever is sent away, or finds the end, asks elsewhere."""
    asker = await client(full, generate(folder))
    for _ in range(turns):
        await asyncio.sleep(0)
    served.stop("nobody asked any more")
    told = await asker.frames()
    assert (
        told == []
        or told[0].get("stopping")
        or (told[-1] == {"end": True} and "welcome" in told[0])
    )
    await served.over
    with pytest.raises(ConnectionRefusedError):
        await Client.of(served._place)


@pytest.mark.parametrize("sign", ["pressure", "replaced files", "no socket", "another's socket"])
async def test_what_it_sees_when_idle_ends_it(
    served, client, full, folder, clock, gate, place, monkeypatch, sign
):
    gate.held_from = 0
    asker = await client(full, generate(folder))
    await gate.reached()
    if sign == "pressure":
        monkeypatch.setattr(server, "under_pressure", lambda: True)
    elif sign == "replaced files":
        replaced = dataclasses.replace(server.build(), digest="another")
        monkeypatch.setattr(server, "build", lambda: replaced)
    else:
        place.socket.unlink()
        if sign == "another's socket":
            place.socket.touch()
    served._look_round()
    assert served._life.stage is Stage.SERVING  # somebody is answered
    gate.open()
    assert (await asker.frames())[-1] == {"end": True}
    await settled()
    clock.now += 5
    served._look_round()
    if sign == "replaced files":
        assert served._life.stage is Stage.SERVING  # looked at once in thirty seconds
        clock.now += 30
        served._look_round()
    await served.over


async def test_a_client_of_another_build_makes_it_look_at_its_files(
    served, client, full, monkeypatch
):
    replaced = dataclasses.replace(server.build(), digest="another")
    monkeypatch.setattr(server, "build", lambda: replaced)
    served._look_round()
    assert served._life.stage is Stage.SERVING
    other = {**full["hello"], "build": dataclasses.asdict(replaced)}
    (refused,) = await (await client({"hello": other})).frames()
    assert "changed" in refused["refused"]
    served._look_round()
    await served.over


async def test_a_wall_clock_that_jumps_ends_nothing_and_keeps_nothing(
    served, client, full, folder, clock, monkeypatch
):
    assert (await (await client(full, generate(folder, keep=10))).frames())[-1] == {"end": True}
    await settled()
    real = time.time
    for jump in (-1e9, 1e9):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        served._look_round()
        assert served._life.stage is Stage.SERVING
    clock.now += 10
    served._look_round()
    await served.over


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
    told = connection._outbox._written
    for _ in range(1000):
        await asyncio.sleep(0)
    assert connection._outbox._written == told
    gate.open()
    assert (await asker.frames())[-1] == {"end": True}


def test_signs_are_named():
    assert Signs().why == ""
    assert Signs(replaced=True).why == "the package's files were replaced"
