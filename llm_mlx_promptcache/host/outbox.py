"""Frames on their way to one reader: written at once, counted, and given up if nobody reads."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
from collections.abc import Mapping
from typing import Any

from .frames import encode

WAITING_BYTES = 4 << 20  # of frames that wait for a client that does not read, maybe stopped
STALLED_SECONDS = 60.0


class Outbox:
    """The frames of one connection on their way out; sending waits for nobody.

    Any thread may send: a token leaves from the thread that computed it, and wakes no other. The
    loop writes what the system did not take at once. A client that was stopped (Ctrl-Z) finds its
    answer when it goes on: 4 MB wait for it.
    """

    def __init__(self, writer: asyncio.StreamWriter, now: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._writer = writer
        # A descriptor of its own: the transport may close its one at any time, and its number
        # would then be another connection's.
        self._sock: socket.socket = writer.get_extra_info("socket").dup()
        self._lock = threading.Lock()
        self._waiting = bytearray()
        self._taken = asyncio.Event()  # set while nothing waits
        self._taken.set()
        self._over = False  # closed, or its reader is gone
        self.written = 0
        self._sent = 0
        self._progress_at = now

    def send(self, *data: Mapping[str, Any]) -> None:
        """Write frames, from any thread; FrameError and TypeError where one is invalid."""
        frames = b"".join(map(encode, data))
        with self._lock:
            if self._over:
                return
            self.written += len(frames)
            if not self._waiting:
                frames = frames[self._passed(frames) :]
                if frames:
                    self._loop.call_soon_threadsafe(self._go_on)
            self._waiting += frames

    async def delivered(self) -> None:
        """Wait until the system has all of it; ConnectionError if the reader is gone."""
        while self._waiting:
            self._taken.clear()
            await self._taken.wait()
        if self._over:
            raise ConnectionResetError("nobody reads any more")

    @property
    def waiting(self) -> int:
        """Bytes that the system has not taken yet."""
        return len(self._waiting)

    def is_stalled(self, now: float, patience: float = math.inf) -> bool:
        """True if nothing went out for too long: 60 seconds with 4 MB waiting, else `patience`."""
        with self._lock:
            waiting, sent = len(self._waiting), self.written - len(self._waiting)
        if not waiting or sent != self._sent:
            self._sent, self._progress_at = sent, now
        allowed = STALLED_SECONDS if waiting > WAITING_BYTES else patience
        return now - self._progress_at >= allowed

    def close(self) -> None:
        """End the connection; bytes that the system already has still arrive."""
        self._end()
        self._writer.close()

    def abort(self) -> None:
        """End it now, and drop what waits."""
        self._end()
        self._writer.transport.abort()

    def _passed(self, frames: bytes | bytearray) -> int:
        """The number of bytes that the system takes now; all of them if nobody will read them."""
        try:
            return self._sock.send(frames)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:  # the reader is gone; whoever reads from it sees that too
            self._over = True
            return len(frames)

    def _go_on(self) -> None:
        """Write what waits, now and whenever the system takes more; on the loop."""
        with self._lock:
            if not self._over:
                del self._waiting[: self._passed(self._waiting)]
                if self._waiting:
                    self._loop.add_writer(self._sock, self._go_on)
                    return
                self._loop.remove_writer(self._sock)
        self._taken.set()

    def _end(self) -> None:
        with self._lock:
            if self._sock.fileno() >= 0:
                self._loop.remove_writer(self._sock)
                self._sock.close()
            self._over = True
            self._waiting.clear()
        self._taken.set()
