"""The host's loop: its clients, what each may ask, and when the process leaves."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..cache.disk.files import same_file
from ..engine.pool import close_engines, current_engine_for, drop_engine
from .connections import ClientConnection, Welcome
from .control import HANDLERS, Handler
from .errors import HostStopped
from .hello import PROTOCOL, build, difference, shown
from .life import Life, Signs, Stage
from .notices import Notice, Notices
from .outbox import STALLED_SECONDS
from .packing import IdlePacking
from .place import peer_pid, peer_uid
from .pressure import under_pressure

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from .place import Place

MOST_CONNECTIONS = 256  # that are welcomed; as many more are told that it is full
BACKLOG = 1024  # more than may come at once; systems take less
_THREADS = 32  # for work that may wait for disks and locks
_BUILD_SECONDS = 30.0  # between two looks at the package's files
_SHOWN = 40


class Server:
    """One host's connections, over a socket that listens already.

    `mine` is its hello, with which its clients' are compared.
    """

    def __init__(
        self,
        place: Place,
        mine: Mapping[str, Any],
        life: Life,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self.large_frame = asyncio.Lock()
        self._place = place
        self._mine = mine
        self._life = life
        self._notices = Notices()
        self._handlers: Mapping[str, Handler] = HANDLERS
        self._count = 0  # of connections, those that have said nothing yet included
        self._open: dict[ClientConnection, None] = {}
        self._asking: dict[ClientConnection, None] = {}
        self._over = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        found = place.socket.stat()
        self._socket = found.st_dev, found.st_ino
        self._replaced = False
        self._build_at = clock() + _BUILD_SECONDS

    async def serve(self, listening: socket.socket) -> None:
        """Answer until the host's life is over, then flush."""
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(_THREADS, "beside"))
        server = await asyncio.start_unix_server(self._accept, sock=listening, backlog=BACKLOG)
        self._look()
        packing = IdlePacking(lambda: self._life.is_idle)
        await packing.run(self._over)
        with ThreadPoolExecutor(1) as beside:  # the loop still answers new clients
            await loop.run_in_executor(beside, close_engines)
            await loop.run_in_executor(beside, packing.finish)
        server.close()

    def stop(self, why: str) -> None:
        """Take nothing new, finish the asks under way and leave; a second time, cancel them."""
        self._life.stop(self.clock(), why)
        self._look()

    def tell(self, notice: Notice, holds: Callable[[], bool] | None) -> None:
        """Tell the clients whom it concerns, once a process; later ones too while it holds."""
        if holds is not None:
            self._notices.hold(notice, holds)
        told = set()
        for connection in self._asking:
            if notice.concerns(connection.model) and connection.process not in told:
                told.add(connection.process)
                self._notices.tell(notice, connection.process)
                connection.tell(notice)
        if holds is None and not told:
            self._notices.wait(notice)

    def greet(self, frame: Mapping[str, Any]) -> tuple[dict[str, Any], Welcome]:
        """The answer to a hello, and the asks that it allows."""
        hello = frame.get("hello")
        if not isinstance(hello, Mapping):
            return self._refused("what it was told is no hello"), Welcome.NONE
        if why := difference(self._mine, hello):
            self._build_at = self.clock()  # its files may have been replaced
            return self._refused(why), Welcome.NONE
        if self._count > MOST_CONNECTIONS:
            # A client leaves a busy host alone; it would ask an idle one to end.
            refused = self._refused(f"it has {MOST_CONNECTIONS} connections")
            return {**refused, "busy": max(1, self._life.busy)}, Welcome.NONE
        everything = "build" in hello
        if everything and not self._life.welcomes:
            return self._refused(f"it is ending: {self._life.why}"), Welcome.NONE
        welcome = {"pid": os.getpid(), "protocol": PROTOCOL, "build": self._mine["build"]}
        may = Welcome.ALL if everything else Welcome.ANY_BUILD
        return {"welcome": {**welcome, "busy": self._life.busy}}, may

    @contextmanager
    def open_for(self, connection: ClientConnection) -> Iterator[None]:
        """The time during which a welcomed client may ask."""
        self._life.opened()
        self._open[connection] = None
        try:
            yield
        finally:
            del self._open[connection]
            self._life.closed()
            self._look()

    @contextmanager
    def asked_by(self, connection: ClientConnection, keep: float | None) -> Iterator[None]:
        """The time of a request, during which its client is told what is logged."""
        self._life.begin(keep)
        self._asking[connection] = None
        try:
            for notice in self._notices.owed(connection.process, connection.model):
                connection.tell(notice)
            yield
        finally:
            del self._asking[connection]
            self._life.end(self.clock())
            engine = connection.engine
            if engine is not None and all(other.engine is not engine for other in self._asking):
                drop_engine(engine)

    async def control(self, ask: Mapping[str, Any]) -> Mapping[str, Any]:
        """The result of an ask other than an answer; ValueError for one that a host does not know.

        Clients of any build may send it: a clear must reach whatever host there is.
        """
        name = str(ask.get("ask"))
        if name == "stop":
            if self._life.busy and ask.get("idle"):
                raise RuntimeError(f"it answers {self._life.busy}")
            self.stop(shown(ask.get("why") or "it was asked to"))
            return self._told()
        if name not in self._handlers:
            raise ValueError(f"a host of this version can't do {name[:_SHOWN]!r}")
        if name != "ps" and not self._life.welcomes:  # its contents are on their way to the disk
            raise HostStopped(f"the host is ending: {self._life.why}")
        result = await asyncio.to_thread(self._handlers[name], ask)
        return {**self._told(), **result} if name == "ps" else result

    async def engine_for(self, model: str) -> Engine:
        """The engine of a model as its files are now; a hanging folder blocks only a thread."""
        return await asyncio.to_thread(current_engine_for, model)

    @property
    def patience(self) -> float:
        """Seconds that an answer waits for a client that does not read: as for a new ask."""
        keep = self._life.status(self.clock()).keep
        return math.inf if keep is None else max(keep, STALLED_SECONDS)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        process = _client_pid(writer)
        if process is None or self._count >= 2 * MOST_CONNECTIONS:
            writer.transport.abort()
            return
        self._count += 1
        try:
            await ClientConnection(self, reader, writer, process).converse()
        finally:
            self._count -= 1

    def _refused(self, why: str) -> dict[str, Any]:
        stopping = not self._life.welcomes
        return {"refused": why, "busy": self._life.busy, "stopping": stopping}

    def _told(self) -> dict[str, Any]:
        """The process's status for `ps`; seconds, None where it does not apply, or for forever."""
        status = self._life.status(self.clock())
        told = {**status._asdict(), "stage": status.stage.value}
        return {"pid": os.getpid(), "build": self._mine["build"], "why": self._life.why, **told}

    def _look(self, signs: Signs | None = None) -> None:
        """Act on the time and the machine's state, and look again when either may have changed."""
        stage = self._life.look(self.clock(), signs or Signs())
        if stage is Stage.CANCELLING:
            for connection in list(self._open):
                connection.cancel(self._life.why)
        if stage is Stage.LEAVING:
            self._over.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pause = self._life.pause(self.clock())
        if pause is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(pause, self._look_round)

    def _look_round(self) -> None:
        self._look(self.signs() if self._life.is_idle else None)

    def signs(self) -> Signs:
        """The signs against staying."""
        if self.clock() >= self._build_at:
            self._build_at = self.clock() + _BUILD_SECONDS
            self._replaced = dataclasses.asdict(build()) != self._mine["build"]
        return Signs(under_pressure(), self._replaced, self.socket_gone)

    @property
    def socket_gone(self) -> bool:
        """True if nobody can connect any more."""
        return not same_file(self._place.socket, self._socket)


def _client_pid(writer: asyncio.StreamWriter) -> int | None:
    """The process at the other end; None if it is not this user's, or the system does not tell."""
    sock = writer.get_extra_info("socket")
    try:
        return peer_pid(sock) if peer_uid(sock) == os.geteuid() else None
    except OSError:
        return None
