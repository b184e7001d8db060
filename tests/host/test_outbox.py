"""Outbox: frames leave from any thread, whole and in order, and wait where nobody reads."""

import asyncio
import socket
import threading
from contextlib import suppress

import pytest
from hosts import LONG, Client

from llm_mlx_promptcache.host.outbox import Outbox

SMALL = 4096  # bytes of the system's own buffer, or what it makes of that


class Ends:
    """The outbox at one end of a connection, and its reader at the other."""

    def __init__(self, outbox, reader):
        self.outbox, self.reader = outbox, reader


@pytest.fixture
async def ends():
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
    _, writer = await asyncio.open_unix_connection(sock=ours)
    reader = Client(*await asyncio.open_unix_connection(sock=theirs, limit=SMALL))
    outbox = Outbox(writer, 0.0)
    yield Ends(outbox, reader)
    outbox.abort()
    outbox.abort()  # twice changes nothing
    for each in (writer, reader.writer):
        each.close()
        with suppress(ConnectionError):
            await each.wait_closed()


def frame(thread, number):
    """A frame that is longer than the system takes at once, some of the time."""
    return {"from": thread, "number": number, "text": "x" * (number % 7 * 900)}


async def test_frames_of_several_threads_arrive_whole_and_each_in_its_order(ends):
    def send(thread):
        for number in range(0, 200, 2):
            ends.outbox.send(frame(thread, number), frame(thread, number + 1))

    threads = [threading.Thread(target=send, args=[n]) for n in range(3)]
    for thread in threads:
        thread.start()
    found = {n: [] for n in range(4)}
    for number in range(200):
        ends.outbox.send(frame(3, number))
        one = await ends.reader.frame()
        found[one["from"]].append(one)
    for _ in range(600):
        one = await ends.reader.frame()
        found[one["from"]].append(one)
    for thread in threads:
        thread.join(LONG)
    assert found == {n: [frame(n, number) for number in range(200)] for n in range(4)}
    await ends.outbox.delivered()
    assert ends.outbox.waiting == 0


async def test_a_frame_that_the_system_takes_at_once_wakes_nobody(ends, monkeypatch):
    woken = []
    monkeypatch.setattr(asyncio.get_running_loop(), "call_soon_threadsafe", woken.append)
    thread = threading.Thread(target=ends.outbox.send, args=[{"token": 1}])
    thread.start()
    thread.join(LONG)  # the loop does nothing meanwhile
    assert (woken, ends.outbox.waiting) == ([], 0)
    assert await ends.reader.frame() == {"token": 1}


async def test_what_waits_is_counted_and_delivered_once_it_is_read(ends):
    ends.outbox.send({"text": "x" * 100_000})
    assert ends.outbox.waiting > 0
    delivered = asyncio.create_task(ends.outbox.delivered())
    await asyncio.sleep(0)
    assert not delivered.done()
    assert len((await ends.reader.frame())["text"]) == 100_000
    await asyncio.wait_for(delivered, LONG)


async def test_who_is_gone_is_told_to_who_waits_and_nothing_more_is_kept(ends):
    ends.outbox.send({"text": "x" * 100_000})
    delivered = asyncio.create_task(ends.outbox.delivered())
    await asyncio.sleep(0)
    ends.reader.writer.transport.abort()
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(delivered, LONG)
    before = ends.outbox.written
    ends.outbox.send({"text": "more"})
    assert (ends.outbox.waiting, ends.outbox.written) == (0, before)


async def test_a_closed_one_sends_nothing_and_holds_no_descriptor(ends):
    held = ends.outbox._sock
    ends.outbox.send({"last": 1})
    ends.outbox.close()
    ends.outbox.send({"too late": 1})
    assert held.fileno() == -1
    assert await ends.reader.frames() == [{"last": 1}]
