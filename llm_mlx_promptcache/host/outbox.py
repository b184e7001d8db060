"""Frames on their way to one reader: written at once, counted, and given up if nobody reads."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any

from .frames import encode

WAITING_BYTES = 4 << 20  # of frames that wait for a client that does not read, maybe stopped
STALLED_SECONDS = 60.0


class Outbox:
    """The frames of one connection on their way out; sending waits for nobody.

    A client that was stopped (Ctrl-Z) finds its answer when it goes on: 4 MB wait for it.
    """

    def __init__(self, writer: asyncio.StreamWriter, now: float) -> None:
        self._writer = writer
        self._written = self._sent = 0
        self._progress_at = now
        writer.transport.set_write_buffer_limits(high=0)  # so that `drain` waits for the last byte

    def send(self, data: Mapping[str, Any]) -> None:
        """Write a frame; FrameError and TypeError where it is invalid."""
        frame = encode(data)
        if not self._writer.is_closing():
            self._written += len(frame)
            self._writer.write(frame)

    async def delivered(self) -> None:
        """Wait until the system has all of it; ConnectionError if the reader is gone."""
        await self._writer.drain()

    def is_stalled(self, now: float, patience: float = math.inf) -> bool:
        """True if nothing went out for too long: 60 seconds with 4 MB waiting, else `patience`."""
        waiting = self._writer.transport.get_write_buffer_size()
        if not waiting or self._written - waiting != self._sent:
            self._sent, self._progress_at = self._written - waiting, now
        allowed = STALLED_SECONDS if waiting > WAITING_BYTES else patience
        return now - self._progress_at >= allowed

    def close(self) -> None:
        """End the connection; bytes that the system already has still arrive."""
        self._writer.close()

    def abort(self) -> None:
        """End it now, and drop what waits."""
        self._writer.transport.abort()
