"""Homes of their own for hosts, hosts in processes, and servers on the test's own loop."""

import asyncio
import contextlib
import os
import signal
import tempfile

import homes
import hosts
import pytest
from served import Gate

from llm_mlx_promptcache.config import HOME_VARIABLE, KEEP_VARIABLE
from llm_mlx_promptcache.engine import pool
from llm_mlx_promptcache.host import connections
from llm_mlx_promptcache.host.hello import hello
from llm_mlx_promptcache.host.life import Life
from llm_mlx_promptcache.host.main import listening
from llm_mlx_promptcache.host.place import host_place
from llm_mlx_promptcache.host.server import Server


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The place of a home that nobody else has, whose hosts stay for an hour."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.setenv(KEEP_VARIABLE, "1h")
    return host_place()


@pytest.fixture
def start(place):
    """`start(**options of Popen)` -> a host in a process of its own, which ends with the test."""
    started = []

    def run(**options):
        started.append(hosts.Host(place, **options))
        return started[-1]

    yield run
    for host in started:
        if host.process.poll() is None:
            host.process.terminate()
            host.process.terminate()
        host.ended()


class Clock:
    """A clock that goes on when it is told."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    """The clock of `served`."""
    return Clock()


@pytest.fixture
async def served(place, clock, monkeypatch):
    """A server on the test's loop, with the engines of this process; `served.over` is its end."""
    monkeypatch.setattr(connections, "_FRAME_SECONDS", 600.0)  # no test waits for it
    with listening(place) as sock:
        server = Server(place, hello(place), Life(300.0, clock()), clock)
        server.over = asyncio.create_task(server.serve(sock))
        yield server
        server.stop("the test ended")
        server.stop("the test ended")
        async with asyncio.timeout(hosts.LONG):
            await server.over
    pool.close_engines()


@pytest.fixture
async def client(served, place):
    """A function that makes a client of `served` which has sent frames; closed with the test."""
    made = []

    async def connect(*frames):
        made.append(await hosts.Client.of(place))
        made[-1].send(*frames)
        return made[-1]

    yield connect
    for each in made:
        each.close()
        with contextlib.suppress(ConnectionError):
            await each.writer.wait_closed()


@pytest.fixture
def home(monkeypatch):
    """A home with a short path; whatever was started in it ends with the test."""
    with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as folder:
        monkeypatch.setenv(HOME_VARIABLE, folder)
        monkeypatch.setenv(KEEP_VARIABLE, "5m")
        home = homes.Home(host_place())
        before = homes.children()  # the session's own: what forks commands for tests
        yield home
        for pid in home.started():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
                os.kill(pid, signal.SIGCONT)
        homes.ended(home.place)
        for thread in homes.reapers():
            thread.join(60)
        # Nobody's child is left behind, also none that ended.
        assert homes.children() <= before


@pytest.fixture(scope="module")
def folder(tiny_llama):
    """A tiny model."""
    return tiny_llama()


@pytest.fixture
def full(place):
    """The hello of a client of the same build."""
    return {"hello": hello(place)}


@pytest.fixture
def gate(monkeypatch):
    """A gate before the engine's steps, which is open at the end."""
    made = Gate(monkeypatch)
    yield made
    made.open()
