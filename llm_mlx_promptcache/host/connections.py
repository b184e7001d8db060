"""One connection: a hello, one ask, its answer; closing it cancels the ask."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import aclosing, suppress
from enum import Enum
from typing import TYPE_CHECKING, Any

from ..engine import wire
from ..engine.events import Event, Finished, Output
from ..engine.request import GenerationRequest
from .errors import HostStopped, error_to_json
from .frames import MAX_FRAME, MAX_HELLO, FrameError, read_body, read_length
from .outbox import Outbox

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from .notices import Notice
    from .server import Server

_SMALL = 64 << 10  # bytes of a frame that may come beside others
_SLOWEST = 1 << 20  # bytes a second of frames: the other end is on this machine
_FRAME_SECONDS = 5.0
_LONGEST_NAME = 8192  # characters of a model's reference: two paths
_TICK_SECONDS = 1.0  # between two beats, and two checks of the reader


class Welcome(Enum):
    """The asks that a client may send."""

    NONE = "nothing"
    ANY_BUILD = "what a host does for any other build"
    ALL = "everything"


class ClientConnection:
    """The server's side of one connection."""

    def __init__(
        self,
        server: Server,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        process: int,
    ) -> None:
        self._server = server
        self._reader = reader
        self._outbox = Outbox(writer, server.clock())
        self._work: asyncio.Task[None] | None = None
        self._why = ""  # it was cancelled
        self.engine: Engine | None = None
        self._beats = 0
        self.process = process
        self.model = ""

    async def converse(self) -> None:
        """Serve it to its end; whatever arrives, this raises nothing and disturbs nobody else."""
        try:
            hello = await self._receive(MAX_HELLO)
            if hello is not None:
                await self._greet(hello)
            self._outbox.close()
        except (FrameError, TimeoutError, ConnectionError):
            self._outbox.abort()
        except BaseException:
            self._outbox.abort()
            raise

    def tell(self, notice: Notice) -> None:
        """Send a line that was logged beside its answer."""
        self._outbox.send({"log": [notice.level, notice.logger, notice.text]})

    def cancel(self, why: str) -> None:
        """End the ask under way, and say why."""
        self._why = why
        if self._work is None:
            self._outbox.abort()  # it has not asked yet
        else:
            self._work.cancel()

    async def _greet(self, hello: Mapping[str, Any]) -> None:
        answer, welcome = self._server.greet(hello)
        self._outbox.send(answer)
        if welcome is Welcome.NONE:
            await self._while_read(self._outbox.delivered(), _FRAME_SECONDS)
            return
        with self._server.open_for(self):
            ask = await self._receive(MAX_FRAME)
            if ask is None:
                return
            read = await self._while_read(self._answer(ask, welcome), math.inf)
            if read:
                read = await self._while_read(self._outbox.delivered(), self._server.patience)
            if not read:
                self._outbox.abort()

    async def _receive(self, most: int) -> dict[str, Any] | None:
        """The next frame, None for the end; large ones one at a time, slow ones refused."""
        async with asyncio.timeout(_FRAME_SECONDS):
            length = await read_length(self._reader, most)
        if length is None:
            return None
        if length <= _SMALL:
            return await self._body(length)
        async with self._server.large_frame:
            return await self._body(length)

    async def _body(self, length: int) -> dict[str, Any] | None:
        async with asyncio.timeout(_FRAME_SECONDS + length / _SLOWEST):
            return await read_body(self._reader, length)

    async def _while_read(self, work: Coroutine[Any, Any, None], patience: float) -> bool:
        """True if the work came to its end; it is cancelled when nobody reads any more."""
        self._work = asyncio.create_task(work)
        if self._why:
            self._work.cancel()
        tasks = {self._work, asyncio.create_task(self._gone())}
        tasks.add(asyncio.create_task(self._stalled(patience)))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            done = self._work.done()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if done and not self._work.cancelled():
            self._work.result()
        return done

    async def _gone(self) -> None:
        """Return when the other end closes, or sends something unasked."""
        with suppress(ConnectionError):
            await self._reader.read(1)

    async def _stalled(self, patience: float) -> None:
        """Return when the other end does not read; meanwhile send beats while the engine works."""
        while not self._outbox.is_stalled(self._server.clock(), patience):
            await asyncio.sleep(_TICK_SECONDS)
            if self.engine is not None and self.engine.beats != self._beats:
                self._beats = self.engine.beats
                self._outbox.send({"beat": self._beats})

    async def _answer(self, ask: Mapping[str, Any], welcome: Welcome) -> None:
        """Send the result of an ask, or its error."""
        try:
            if ask.get("ask") == "generate" and welcome is Welcome.ALL:
                await self._generate(ask)
                self._outbox.send({"end": True})
            else:
                self._outbox.send({"result": await self._server.control(ask)})
        except asyncio.CancelledError:
            if not self._why:
                raise
            told = f"the resident host (process {os.getpid()}) ended ({self._why})"
            self._fail(HostStopped(told))
        except (Exception, SystemExit) as error:  # a model's own code may raise anything
            self._fail(error)
        finally:
            self.engine = None

    async def _generate(self, ask: Mapping[str, Any]) -> None:
        # A request is as large as its conversation; meanwhile the loop serves others.
        self.model, request, keep = await asyncio.to_thread(_asked, ask)
        with self._server.asked_by(self, keep):
            self.engine = await self._server.engine_for(self.model)
            self._beats = self.engine.beats
            async with aclosing(self.engine.agenerate(request, self._tell)) as events:
                async for event in events:
                    self._outbox.send(_frame_of(event))

    def _tell(self, outputs: Sequence[Output]) -> Sequence[Output]:
        """Send what a step brought, on the engine's thread; the end of an answer may be long.

        A loop that is woken for each token costs both threads their turns at the interpreter.
        """
        short = [one for one in outputs if isinstance(one, Event) and not isinstance(one, Finished)]
        if len(short) < len(outputs):
            return outputs
        self._outbox.send(*map(_frame_of, short))
        return ()

    def _fail(self, error: BaseException) -> None:
        self._outbox.send({"error": error_to_json(error)})


def _frame_of(event: Event) -> dict[str, Any]:
    return {"event": wire.to_json(event)}


def _asked(ask: Mapping[str, Any]) -> tuple[str, GenerationRequest, float | None]:
    """The model, the request and the seconds to stay; ValueError where they are invalid."""
    model, keep = ask.get("model"), ask.get("keep")
    if not isinstance(model, str) or not 0 < len(model) <= _LONGEST_NAME:
        raise ValueError("an ask names no model")
    if keep is not None and (not isinstance(keep, (int, float)) or not 0 <= keep < math.inf):
        raise ValueError("the time to stay is not a number of seconds")
    request = wire.from_json(ask.get("request", {}))
    if not isinstance(request, GenerationRequest):
        raise ValueError("an ask holds no request")
    return model, request, keep
