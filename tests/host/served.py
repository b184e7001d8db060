"""A server on the test's own loop, seen from outside: who is served, and when its engine steps."""

import asyncio
import threading

from hosts import LONG

from llm_mlx_promptcache.engine.scheduler import Scheduler
from llm_mlx_promptcache.host.hello import bare_hello

PS = {"ask": "ps"}
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
