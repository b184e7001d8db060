"""Hosts in processes of their own, and clients that say to them what they like."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import forks

from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine import wire
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.host.environment import of_host
from llm_mlx_promptcache.host.frames import Channel, encode, read_body, read_length
from llm_mlx_promptcache.host.hello import bare_hello, hello
from llm_mlx_promptcache.host.place import peer_pid

# As COMMAND, but it waits ten minutes for who says nothing: no machine is too slow for its test.
PATIENT = (
    sys.executable,
    "-P",
    "-c",
    "import sys; from llm_mlx_promptcache.host import connections, main;"
    " connections._FRAME_SECONDS = 600.0; sys.exit(main.main())",
)
COMMAND = (sys.executable, "-P", "-m", "llm_mlx_promptcache.host")
LONG = 60  # seconds after which a test has failed, and none is asked to be fast
# Of the index: a connection has the file, its log, and all together the log's index. It is opened
# behind an answer; SQLite keeps the descriptor of one that was closed while another has the file,
# and gives it to the next. Three stores have two connections each.
MOST_OF_INDEX = 13


def descriptors(pid):
    """The number of files that a process has open, but for those of the index, which are few."""
    names = []
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            names.append(file.readlink().name)
    of_index = sum(name.startswith("index.sqlite") for name in names)
    assert of_index <= MOST_OF_INDEX
    return len(names) - of_index


def generate(folder, text="Hello the capital", *, keep=3600, **asked):
    """The frame that asks for an answer."""
    request = GenerationRequest((Message("user", text),), **{"max_tokens": 6, **asked})
    return {
        "ask": "generate",
        "model": str(folder),
        "request": wire.to_json(request),
        "keep": keep,
    }


def events(frames):
    """The events among frames, as they were before they were JSON."""
    return [wire.from_json(frame["event"]) for frame in frames if "event" in frame]


class Host:
    """A host in a process of its own, and what it is asked."""

    def __init__(self, place, command=COMMAND, **options):
        self.place = place
        with place.log.open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log, **options)

    def connected(self):
        """A socket that is connected to it; waits for it to listen."""
        until = time.monotonic() + LONG
        while True:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(os.fspath(self.place.socket))
                return sock
            except (FileNotFoundError, ConnectionRefusedError):
                sock.close()
                if self.process.poll() is not None or time.monotonic() > until:
                    raise AssertionError(self.log()) from None
                time.sleep(0.01)

    def welcomed(self, said=None):
        """A channel to it after its hello, whatever that was."""
        channel = Channel(self.connected())
        channel.send({"hello": hello(self.place) if said is None else said}, LONG)
        channel.greeting = channel.receive(LONG)
        return channel

    def ask(self, ask, said=None):
        """All frames that answer."""
        channel = self.welcomed(said)
        try:
            assert "welcome" in channel.greeting, channel.greeting
            channel.send(ask, LONG)
            return list(frames_of(channel))
        finally:
            channel.close()

    def ps(self):
        """The host's own report."""
        (frame,) = self.ask({"ask": "ps"}, bare_hello())
        return frame["result"]

    def log(self):
        """Its log file."""
        return self.place.log.read_text()

    def ended(self):
        """Its exit status, once it has one."""
        return self.process.wait(LONG)


class ForkedHost(Host):
    """The same without the second of imports: a fork (`forks.host`), which has a pid of its own."""

    def __init__(self, place):
        super().__init__(place, (forks.host(), *forks.HOST), env=of_host(os.environ))
        with closing(self.connected()) as sock:
            self.pid = peer_pid(sock)

    def send_signal(self, number):
        """Send the host a signal, also one that its stand-in can't pass on."""
        os.kill(self.pid, number)


def frames_of(channel):
    """The frames that come until the other end closes."""
    while (frame := channel.receive(LONG)) is not None:
        yield frame


class Client:
    """A client on the loop that a server runs on."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def of(cls, place):
        """One that is connected."""
        return cls(*await asyncio.open_unix_connection(place.socket))

    def send(self, *frames):
        """Send frames, without waiting for anybody."""
        for frame in frames:
            self.writer.write(encode(frame))

    async def frame(self):
        """The next frame; None for the end."""
        async with asyncio.timeout(LONG):
            length = await read_length(self.reader)
            return None if length is None else await read_body(self.reader, length)

    async def frames(self):
        """All that come until the end."""
        found = []
        while (frame := await self.frame()) is not None:
            found.append(frame)
        return found

    def close(self):
        """Go away."""
        self.writer.close()
