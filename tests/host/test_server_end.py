"""The end of a server: stopped, idle, or no longer the host that it was."""

import asyncio
import dataclasses
import os
import threading
import time

import pytest
from hosts import LONG, Client, events, generate
from served import BARE, PS, settled

from llm_mlx_promptcache.engine import pool
from llm_mlx_promptcache.host import server
from llm_mlx_promptcache.host.life import Signs, Stage


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
    text = f"the resident host (process {os.getpid()}) ended (the test says so)"
    assert told == {"error": {"kind": "HostStopped", "text": text}}
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
    """Always one of the two: a client that is sent away, or finds the end, asks elsewhere."""
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


def test_signs_are_named():
    assert Signs().why == ""
    assert Signs(replaced=True).why == "the package's files were replaced"
