"""A home with a real host, for tests of commands that ask it; conftest.py has the fixtures."""

import functools
import signal
from contextlib import suppress

import hosts
import pytest

from llm_mlx_promptcache.cache.disk.listing import path_id
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.commands import host as host_commands
from llm_mlx_promptcache.config import HOME_VARIABLE, KEEP_VARIABLE
from llm_mlx_promptcache.engine.events import Finished
from llm_mlx_promptcache.host import asking, start
from llm_mlx_promptcache.host.place import host_place

LONG = "Hello capital of the user and the answer of the system"


ASK = ("-m", "mlx-cached", "-s", LONG, "-o", "max_tokens", "4")


@pytest.fixture(scope="session")
def models(tiny_llama):
    """Two models of other weights."""
    return str(tiny_llama()), str(tiny_llama(seed=1))


class Hosted:
    """A home with a host in a process of its own."""

    def __init__(self, home, place):
        self.home, self.host = home, hosts.ForkedHost(place)
        self.told, self.ours = home.told, home.ours

    def asked(self, model, text=LONG, **asked):
        """The end of an answer of the host."""
        frames = self.host.ask(hosts.generate(model, text, **asked))
        assert "end" in frames[-1], frames[-1]
        *_, last = hosts.events(frames)
        assert isinstance(last, Finished)
        return last

    def memory(self):
        return self.told("stats")["memory"]

    def disk(self):
        return self.told("stats")["spans"]

    def flush(self):
        """Have what waits to be written be on the disk."""
        *_, last = self.host.ask({"ask": "flush"})
        assert last == {"result": {}}

    def earlier_id(self, file_id):
        """The id that a stored span had while memory alone held it."""
        listing = DiskStore(self.told("path")["path"]).listing()
        (span,) = listing.named(file_id)
        return path_id(span.namespace, listing.path(span))

    def end(self):
        if self.host.process.poll() is None:
            for number in (signal.SIGCONT, signal.SIGTERM, signal.SIGTERM):
                with suppress(ProcessLookupError):  # it is just ending
                    self.host.send_signal(number)
        return self.host.ended()


@pytest.fixture
def hosted(bare_home, monkeypatch):
    """A home whose host answers; ended with the test."""
    monkeypatch.setenv(HOME_VARIABLE, bare_home.own()[HOME_VARIABLE])
    monkeypatch.setenv(KEEP_VARIABLE, "1h")
    made = Hosted(bare_home, host_place())
    yield made
    made.end()


@pytest.fixture
def impatient(monkeypatch):
    """Commands that wait a moment for what takes them seconds."""
    waits = start.Waits(hello=0.3)
    monkeypatch.setattr(asking, "find", functools.partial(start.find, waits=waits))
    monkeypatch.setattr(host_commands, "_WAIT_SECONDS", 0.3)


@pytest.fixture
def user(hosted, models):
    """A user of `llm` whose prompts the host answers."""
    hosted.ours("default", models[0])
    return hosted
