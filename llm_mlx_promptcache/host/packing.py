"""Packing: files of the disk cache become packs while nobody asks the host anything.

Each step is one read or write of 8 MB at most, and the host is checked before each: a request that
comes meanwhile waits for no more than that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from ..engine.packing import REST_SECONDS, PackingSteps, alone, packing_steps

LOOK_SECONDS: Final = 30.0  # between two looks for files to pack
_LAST_SECONDS: Final = 1.0  # of the process: `stop` waits ten in all


def _steps() -> Iterator[Any]:
    """The packing to do now, step by step."""
    return packing_steps(REST_SECONDS)


class IdlePacking:
    """A packer at work while `idle` says so; it is asked before each step."""

    def __init__(self, idle: Callable[[], bool]) -> None:
        self._idle = idle
        self._steps = PackingSteps(lambda: _steps())
        self._lived_long = False

    async def run(self, over: asyncio.Event) -> None:
        """Look for something to pack now and then, until the process is `over`."""
        while not over.is_set():
            try:
                await asyncio.wait_for(over.wait(), LOOK_SECONDS)
            except TimeoutError:
                await self.work()

    async def work(self) -> None:
        """Take steps while the host is idle; unfinished work goes on the next time."""
        with alone() as may:
            while may and self._idle():
                may = await asyncio.to_thread(self._step)

    def finish(self) -> None:
        """Go on for a moment at the end of a process that lived long, finished or not."""
        until = time.monotonic() + _LAST_SECONDS
        with alone() as may:
            while may and self._lived_long and time.monotonic() < until:
                may = self._step()
        self._steps.drop()

    def _step(self) -> bool:
        self._lived_long = True
        return self._steps.take()
