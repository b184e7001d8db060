"""The host's process from its first line to its last; the socket listens before heavy imports."""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from .hello import hello
from .place import HostUnavailable, Place, host_place

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_WAIT_SECONDS = 15.0  # for the host before this one, which may be writing to the disk
_FILES = 4096  # open at once: connections and spans; macOS gives 256


def main() -> int:
    """Serve until there is nothing left to serve; the exit status."""
    from filelock import FileLock, Timeout

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o077)
    os.chdir("/")
    try:
        place = host_place()
        mine = hello(place)
        lock = FileLock(place.life_lock, timeout=_WAIT_SECONDS, mode=0o600).acquire()
    except Timeout:
        return _failed(f"the host before this one did not end in {_WAIT_SECONDS:.0f} seconds")
    except (HostUnavailable, ValueError) as error:
        return _failed(str(error))
    with lock:
        try:
            listening = listen(place)
        except OSError as error:
            return _failed(f"{place.socket} can't be made ({error.strerror})")
        with listening:
            _serve(place, mine, listening)
    return 0


def listen(place: Place) -> socket.socket:
    """The host's socket, in the place of one that a killed host left; who has it holds the lock."""
    place.socket.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(os.fspath(place.socket))
        place.socket.chmod(0o600)
        listening.listen(1024)  # systems take less; 200 may come at once
    except BaseException:
        listening.close()
        raise
    return listening


def _serve(place: Place, mine: Mapping[str, Any], listening: socket.socket) -> None:
    import asyncio
    import time

    from . import log
    from .life import Life
    from .relay import Relay
    from .server import Server

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(log.in_loop)
        server = Server(place, mine, Life(mine["keep"], time.monotonic()))
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, server.stop, f"it was sent {number.name}")
        Relay(loop, server.tell).listen()
        await server.serve(listening)

    log.take_over()
    _open_more_files()
    asyncio.run(serve())


def _open_more_files() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _FILES:
        with suppress(OSError, ValueError):
            most = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _failed(why: str) -> int:
    print(f"llm-mlx-promptcache: {why}", file=sys.stderr)
    return 1
