"""Frames between client and host: JSON objects behind their length, each one bounded.

Everything that arrives is untrusted: nothing is read beyond a limit, and anything that is not a
frame is a FrameError.
"""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

MAX_FRAME: Final = 64 << 20  # bytes: a prompt of 8 million words, a reply's whole last event
MAX_HELLO: Final = 64 << 10

_LENGTH: Final = 4  # bytes of a length, big-endian
_PIECE: Final = 1 << 16


class FrameError(ValueError):
    """Bytes or data that make no frame: too long, not a JSON object, nested too deeply."""


def encode(data: Mapping[str, Any]) -> bytes:
    """A frame as bytes; FrameError if it is too long, TypeError if it is not JSON."""
    try:
        # As ASCII, so that a lone surrogate, which UTF-8 can't hold, arrives unchanged.
        body = json.dumps(data, separators=(",", ":")).encode("ascii")
    except (ValueError, RecursionError) as error:
        raise FrameError(f"this can't be sent as JSON ({type(error).__name__})") from None
    _check_length(len(body), MAX_FRAME)
    return len(body).to_bytes(_LENGTH, "big") + body


def decode(body: bytes | bytearray) -> dict[str, Any]:
    """The object that a frame holds; FrameError where it holds anything else."""
    try:
        data = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, numbers of 5,000 digits
        raise FrameError(f"a frame holds no JSON ({type(error).__name__})") from None
    if not isinstance(data, dict):
        raise FrameError(f"a frame holds a {type(data).__name__}; it must hold an object")
    return data


async def read_length(reader: asyncio.StreamReader, most: int = MAX_FRAME) -> int | None:
    """The length of the next frame in bytes, at most `most`; None if the other end closed first."""
    from asyncio import IncompleteReadError

    try:
        length = int.from_bytes(await reader.readexactly(_LENGTH), "big")
    except (IncompleteReadError, ConnectionError):
        return None
    _check_length(length, most)
    return length


async def read_body(reader: asyncio.StreamReader, length: int) -> dict[str, Any] | None:
    """The object of a frame of that length; None if the other end closed first."""
    from asyncio import IncompleteReadError

    try:
        return decode(await reader.readexactly(length))
    except (IncompleteReadError, ConnectionError):
        return None


class Channel:
    """A connected socket that carries frames, read by one thread and shut by any.

    `host` names the process at the other end, so that a hanging one can be remembered, and
    `welcome` is its description of itself.
    """

    def __init__(
        self, sock: socket.socket, host: str = "", *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.host = host
        self.welcome: Mapping[str, Any] = {}
        self._sock = sock
        self._clock = clock
        self._read = bytearray()  # what came in time: a part of a frame, or more than one

    def send(self, data: Mapping[str, Any], seconds: float) -> None:
        """Send a frame; TimeoutError if the other end reads too slowly, OSError if it is gone.

        After either the channel can only be closed.
        """
        self._sock.settimeout(max(seconds, 0.0))
        try:
            self._sock.sendall(encode(data))
        except BlockingIOError:
            raise TimeoutError("the other end reads nothing") from None

    def receive(self, seconds: float, most: int = MAX_FRAME) -> dict[str, Any] | None:
        """The next frame; None if the other end closed, even in the middle of a frame.

        TimeoutError if it is not whole within `seconds`; a later call goes on with it.
        """
        until = self._clock() + seconds
        if not self._fill(_LENGTH, until):
            return None
        length = int.from_bytes(self._read[:_LENGTH], "big")
        _check_length(length, most)
        if not self._fill(_LENGTH + length, until):
            return None
        body = self._read[_LENGTH : _LENGTH + length]
        del self._read[: _LENGTH + length]
        return decode(body)

    def shut(self) -> None:
        """End both directions, from any thread: a waiting `receive` returns None at once."""
        with suppress(OSError):  # it ended already
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def _fill(self, length: int, until: float) -> bool:
        """Read on until there are `length` bytes; False where the other end closed."""
        while len(self._read) < length:
            self._sock.settimeout(max(until - self._clock(), 0.0))
            try:
                piece = self._sock.recv(_PIECE)
            except BlockingIOError:
                raise TimeoutError("the other end sends nothing") from None
            except ConnectionError:
                return False
            if not piece:
                return False
            self._read += piece
        return True


def _check_length(length: int, most: int) -> None:
    if length > most:
        raise FrameError(f"a frame of {length} bytes is too long; at most {most} are taken")
