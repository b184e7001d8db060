"""The host's process from its first line to its last; the socket listens before heavy imports."""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from ..cache.disk.files import same_file
from .hello import hello
from .place import HostUnavailable, Place, host_place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from .server import Server

_WAIT_SECONDS = 15.0  # for the host before this one, which may be writing to the disk
_LEAVING = (signal.SIGTERM, signal.SIGHUP)
_FILES = 4096  # open at once: connections and spans; macOS allows 256


def main() -> int:
    """Serve until there is nothing left to serve; returns the exit status."""
    return live(host_place, _server)


def live(
    find_place: Callable[[], Place], make: Callable[[Place, Mapping[str, Any]], Server]
) -> int:
    """A host's life in a place; its server is made once the socket listens. The exit status."""
    from filelock import FileLock, Timeout

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in _LEAVING:  # until the loop takes them
        signal.signal(number, lambda *_: sys.exit(0))
    os.umask(0o077)
    os.chdir("/")
    try:
        place = find_place()
        mine = _said(place)
        with FileLock(place.life_lock, timeout=_WAIT_SECONDS, mode=0o600), listening(place) as sock:
            _serve(partial(make, place, mine), sock)
    except NotImplementedError:
        return failed(f"files in {place.folder} can't be locked")
    except Timeout:
        return failed(f"the host before this one did not end in {_WAIT_SECONDS:.0f} seconds")
    except HostUnavailable as error:
        return failed(str(error))
    return 0


def _said(place: Place) -> dict[str, Any]:
    try:
        return hello(place)
    except ValueError as error:  # the settings can't be read
        raise HostUnavailable(str(error)) from error


@contextmanager
def listening(place: Place) -> Iterator[socket.socket]:
    """The host's socket, in the place of one that a killed host left; HostUnavailable.

    The caller holds the life lock. At the end its file is removed, unless it is another's by then.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            place.socket.unlink(missing_ok=True)
            sock.bind(os.fspath(place.socket))
            place.socket.chmod(0o600)
            sock.listen(1024)  # systems take less; 200 may come at once
            found = place.socket.stat()
        except OSError as error:
            raise HostUnavailable(f"{place.socket} can't be made ({error.strerror})") from error
        try:
            yield sock
        finally:
            if same_file(place.socket, (found.st_dev, found.st_ino)):
                place.socket.unlink()


def _server(place: Place, mine: Mapping[str, Any]) -> Server:
    import time

    from .life import Life
    from .server import Server

    return Server(place, mine, Life(mine["keep"], time.monotonic()))


def _serve(make: Callable[[], Server], sock: socket.socket) -> None:
    import asyncio

    from . import log
    from .relay import Relay

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(log.in_loop)
        server = make()
        for number in _LEAVING:
            loop.add_signal_handler(number, server.stop, f"it was sent {number.name}")
        Relay(loop, server.tell).listen()
        await server.serve(sock)
        for number in _LEAVING:  # signals change nothing now
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)

    log.take_over()
    _open_more_files()
    asyncio.run(serve())


def _open_more_files() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _FILES:
        with suppress(OSError, ValueError):
            most = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def failed(why: str) -> int:
    """The status of a process that can't begin, once it has said why."""
    print(f"llm-mlx-promptcache: {why}", file=sys.stderr)
    return 1
