"""Frames: JSON objects behind their length; whatever else arrives is refused, in bounded memory."""

import asyncio
import json
import socket
import threading
import tracemalloc

import pytest

from llm_mlx_promptcache.host.frames import (
    MAX_FRAME,
    MAX_HELLO,
    Channel,
    FrameError,
    decode,
    encode,
    read_body,
    read_length,
)

FRAME = encode({"event": "an answer"})
NO_FRAMES = {
    "1 GB": (1 << 30).to_bytes(4, "big"),
    "more than may be": (MAX_FRAME + 1).to_bytes(4, "big"),
    "no UTF-8": b"\0\0\0\2\xff\xfe",
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no JSON": b"\0\0\0\3{a}",
    "nothing": b"\0\0\0\0",
    "a list": b"\0\0\0\2[]",
    "a number": b"\0\0\0\0011",
    "two objects": b"\0\0\0\4{}{}",
    "a number of 5,000 digits": (5006).to_bytes(4, "big") + b'{"a":' + b"1" * 5000 + b"}",
    "nested too deeply": (200_000).to_bytes(4, "big") + b"[" * 200_000,
    "objects nested too deeply": (500_000).to_bytes(4, "big") + b'{"a":' * 100_000,
}


@pytest.fixture
def ends():
    """A channel, and the socket at its other end."""
    one, other = socket.socketpair()
    with one, other:
        yield Channel(one), other


def sent(other, data):
    """Send more than a socket holds, while somebody reads."""
    thread = threading.Thread(target=other.sendall, args=[data], daemon=True)
    thread.start()
    return thread


def read(data, most=MAX_FRAME):
    """The host's own reading of these bytes and the end behind them."""

    async def main():
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        length = await read_length(reader, most)
        return None if length is None else await read_body(reader, length)

    return asyncio.run(main())


class Ticking:
    """A clock that goes on by a second whenever somebody looks."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        self.now += 1
        return self.now


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"a": [1, 2.5, None, True, "ä€\U0001f600\0\n"], "b": {"c": -float("inf")}},
        {"lone": "\ud800 and \udfff", "\udcff": 1},
        {"large": 10**4000},
    ],
)
def test_what_is_sent_arrives_as_it_was(ends, data):
    channel, other = ends
    Channel(other).send(data, 5)
    assert channel.receive(5) == data
    assert read(encode(data)) == data


@pytest.mark.parametrize("data", NO_FRAMES.values(), ids=NO_FRAMES)
def test_what_is_no_frame_is_refused_in_bounded_memory(ends, data):
    channel, other = ends
    thread = sent(other, data)
    tracemalloc.start()
    try:
        with pytest.raises(FrameError):
            channel.receive(5)
        with pytest.raises(FrameError):
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 30 * max(len(data), 1 << 16)
    finally:
        tracemalloc.stop()
        channel.close()
        thread.join(1)


def test_a_length_alone_takes_no_memory(ends):
    channel, other = ends
    other.sendall(MAX_FRAME.to_bytes(4, "big") + b"{")
    other.close()
    tracemalloc.start()
    try:
        assert channel.receive(5) is None
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_hello_has_a_smaller_limit(ends):
    channel, other = ends
    large = encode({"hello": "x" * MAX_HELLO})
    thread = sent(other, large)
    with pytest.raises(FrameError, match=f"at most {MAX_HELLO}"):
        channel.receive(5, MAX_HELLO)
    with pytest.raises(FrameError, match=f"at most {MAX_HELLO}"):
        read(large, MAX_HELLO)
    channel.close()
    thread.join(1)


@pytest.mark.parametrize("end", range(len(FRAME)))
def test_a_half_frame_and_an_end_is_an_end(ends, end):
    channel, other = ends
    other.sendall(FRAME[:end])
    other.close()
    assert channel.receive(5) is None
    assert read(FRAME[:end]) is None


@pytest.mark.parametrize("end", range(len(FRAME)))
def test_a_frame_that_comes_in_two_parts_is_one(ends, end):
    channel, other = ends
    other.sendall(FRAME[:end])
    with pytest.raises(TimeoutError):
        channel.receive(0)
    other.sendall(FRAME[end:] + encode({"end": True}))
    assert channel.receive(5) == {"event": "an answer"}
    assert channel.receive(5) == {"end": True}


def test_an_end_in_which_something_was_not_read_is_an_end(ends):
    channel, other = ends
    channel.send({"unread": 1}, 5)
    other.close()
    assert channel.receive(5) is None


def test_a_slow_frame_is_waited_for_as_a_whole():
    """However steadily its bytes come: the clock is looked at for each, and goes on."""

    class Slow:
        """A socket of which each read gives one byte more of a frame that never ends."""

        reads = 0

        def settimeout(self, seconds):
            self.seconds = seconds

        def recv(self, size):
            self.reads += 1
            if self.seconds <= 0:
                raise BlockingIOError
            return b"\0\0\1\0"[self.reads - 1 : self.reads] or b" "

    slow = Slow()
    channel = Channel(slow, clock=Ticking())
    with pytest.raises(TimeoutError):
        channel.receive(20)
    assert slow.reads == 20


def test_frames_that_came_together_are_read_at_once():
    """A host sends what a step brings in one piece: its client looks once."""

    class Together:
        """A socket that has three frames and the beginning of a fourth."""

        reads = 0

        def settimeout(self, seconds):
            pass

        def recv(self, size):
            self.reads += 1
            if self.reads > 1:
                raise TimeoutError
            return 3 * FRAME + FRAME[:-1]

    together = Together()
    channel = Channel(together)
    assert [channel.receive(5) for _ in range(3)] == [{"event": "an answer"}] * 3
    assert together.reads == 1
    with pytest.raises(TimeoutError):
        channel.receive(5)


def test_who_reads_nothing_is_waited_for_so_long_and_no_longer(ends):
    channel, _other = ends
    with pytest.raises(TimeoutError):
        channel.send({"large": "x" * (8 << 20)}, 0.01)
    with pytest.raises(TimeoutError):
        channel.send({"large": "x" * (8 << 20)}, 0)


def test_who_is_gone_is_told_by_an_error(ends):
    channel, other = ends
    other.close()
    with pytest.raises(ConnectionError):
        channel.send({}, 5)


def test_another_thread_ends_a_wait(ends):
    channel, _other = ends
    found = []
    thread = threading.Thread(target=lambda: found.append(channel.receive(60)))
    thread.start()
    channel.shut()
    channel.shut()
    thread.join(60)
    assert found == [None]


def test_what_can_not_be_sent_is_refused_before_a_byte_is(ends):
    channel, other = ends
    ring = {}
    ring["ring"] = ring
    deep = {}
    for _ in range(100_000):
        deep = {"deep": deep}
    with pytest.raises(FrameError, match="too long"):
        channel.send({"text": "x" * MAX_FRAME}, 5)
    for data in (ring, deep):
        with pytest.raises(FrameError, match="can't be sent as JSON"):
            channel.send(data, 5)
    with pytest.raises(TypeError):
        channel.send({"no JSON": object()}, 5)
    channel.close()
    assert other.recv(1) == b""


def test_a_frame_is_its_length_and_its_json():
    assert FRAME[:4] == len(FRAME[4:]).to_bytes(4, "big")
    assert json.loads(FRAME[4:]) == decode(FRAME[4:]) == {"event": "an answer"}
