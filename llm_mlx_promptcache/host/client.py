"""RemoteEngine: an engine in the host's process, with the interface of one in this.

If the host can't answer, this process runs the model itself, with one warning; once the answer has
begun, the host's end is an error. Importing this file imports no MLX.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..chat.messages import Message
from ..config import DEFAULT_MODEL, keep_seconds
from ..engine import wire
from ..engine.events import Event, Finished, Loading, Progress
from ..engine.request import GenerationRequest, warming
from ..models.references import divided, folder_of, spelled
from . import hung
from .errors import HostLost, HostStopped
from .exchange import AskError, ConnectionLost, HostHangs, Line, Patience, answer, result
from .hello import hello
from .place import HostUnavailable, Place, host_place
from .start import connect, find

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from .engines import AnyEngine
    from .frames import Channel

_log = logging.getLogger(__name__)
_TRIES: Final = 2  # before an answer has begun
_warned: set[str] = set()


class _Ended(NamedTuple):
    """The end of the host's answer; `why` this process must answer, if it must."""

    why: str = ""


class RemoteEngine:
    """The engine of one model in the host, which is started if there is none."""

    def __init__(self, reference: str, patience: Patience = Patience()) -> None:  # noqa: B008
        self._reference = spelled(reference)
        self._patience = patience
        self._local: Engine | None = None

    def generate(self, request: GenerationRequest) -> Generator[Event]:
        """The events of one answer, as they come; a reader that stops early frees the host."""
        why = yield from self._answered(request, Line())
        if why:
            yield from self._here(why).generate(request)

    async def agenerate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """The same for an event loop, which is never blocked."""
        loop = asyncio.get_running_loop()
        outputs: asyncio.Queue[Event | BaseException | _Ended] = asyncio.Queue()
        line = Line()

        def deliver(output: Event | BaseException | _Ended) -> None:
            try:
                loop.call_soon_threadsafe(outputs.put_nowait, output)
            except RuntimeError:  # the loop is closed
                line.end()

        def read() -> None:
            try:
                with closing(self._answered(request, line)) as events:
                    deliver(_Ended(_each(events, deliver)))
            except BaseException as error:
                deliver(error)

        threading.Thread(target=read, name="mlx-host-reader", daemon=True).start()
        try:
            while not isinstance(event := await outputs.get(), _Ended):
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            line.end()
        if event.why:
            here = await asyncio.to_thread(self._here, event.why)  # imports MLX
            async with aclosing(here.agenerate(request)) as events:
                async for each in events:
                    yield each

    @property
    def loaded(self) -> bool:
        """True if the model is in memory, in the host or here."""
        if self._local is not None and self._local.loaded:
            return True
        models = self._asked({"ask": "ps"}).get("models")
        told = [one for one in models if isinstance(one, Mapping)] if models else []
        return any(one.get("model") == self._reference and one.get("loaded") for one in told)

    def unload(self, timeout: float = 30.0) -> bool:
        """Free the model's memory, unless it is answering; the next request loads it again."""
        here = self._local is None or self._local.unload(timeout)
        ask = {"ask": "unload", "model": self._reference, "seconds": timeout}
        return bool(self._asked(ask).get("unloaded", True)) and here

    def warm(self, messages: Iterable[Message], **asked: Any) -> Finished:
        """Prefill and pin the common start of conversations that begin with these messages.

        `asked` also shapes their prompts: tools, cache_salt, thinking, template_arguments.
        """
        *_, last = self.generate(warming(messages, **asked))
        assert isinstance(last, Finished)
        return last

    def _answered(self, request: GenerationRequest, line: Line) -> Generator[Event, None, str]:
        """The host's answer; returns why this process must answer instead, "" where it need not."""
        if self._local is not None and self._local.loaded:
            return "the model is loaded here"
        why = ""
        for _ in range(_TRIES):
            begun = False
            try:
                place = self._place()
                with line.over(self._connected(place)) as channel:
                    for event in self._events(place, channel, request):
                        begun = begun or not isinstance(event, (Loading, Progress))
                        yield event
                return ""
            except (HostUnavailable, AskError) as error:
                return str(error)
            except (ConnectionLost, HostStopped) as error:
                why = str(error)
            if line.ended:
                return ""
            if begun:
                raise self._lost(why)
        return why

    def _events(
        self, place: Place, channel: Channel, request: GenerationRequest
    ) -> Generator[Event]:
        """The host's events; a host that hangs with this model is remembered until it answers."""
        name = hung.name_with(channel.host, self._reference)
        seen = hung.is_hung(place, name)
        first = self._patience.again if seen else self._patience.loading
        try:
            for event in answer(channel, self._ask(request), self._patience, first):
                if seen:
                    hung.forget(place)
                    seen = False
                yield event
        except HostHangs:
            hung.remember(place, name)
            raise

    def _ask(self, request: GenerationRequest) -> dict[str, Any]:
        """The frame that asks for an answer; AskError for values that JSON would change."""
        try:
            data = wire.to_json(request)
        except RecursionError:
            data = {}
        if not wire.survives(data):
            raise AskError("this request holds values that can't be sent to another process")
        if _is_another_there(self._reference):
            raise AskError(f"{self._reference!r} would be a folder in the host's own one")
        ask = {"ask": "generate", "model": self._reference, "request": data}
        return {**ask, "keep": self._keep()}

    def _asked(self, ask: Mapping[str, Any]) -> Mapping[str, Any]:
        """The host's result; empty where there is no host, or none that answers."""
        try:
            place = self._place()
            channel = find(place, mine=hello(place), waits=self._patience.waits)
            if channel is not None:
                with Line().over(channel):
                    return result(channel, ask, self._patience)
        except (HostUnavailable, ConnectionLost, AskError) as error:
            _log.debug("the host was not asked: %s", error)
        return {}

    def _place(self) -> Place:
        return host_place()

    def _connected(self, place: Place) -> Channel:
        """A channel to the host for one ask; HostUnavailable."""
        return connect(place, waits=self._patience.waits)

    def _keep(self) -> float | None:
        """Seconds that the host is to stay for this; None for forever."""
        return keep_seconds()

    def _lost(self, why: str) -> HostLost:
        """That the answer's end will not come."""
        return HostLost(f"{why}; what it had written to the disk is reused: ask again")

    def _here(self, why: str) -> AnyEngine:
        """The model's engine in this process, from now on as long as it is loaded."""
        from ..engine.pool import engine_for

        if self._local is None or not self._local.loaded:
            _warn_once(f"{why}; this process runs the model itself")
            self._local = engine_for(self._reference)
        return self._local


def _is_another_there(reference: str) -> bool:
    """True if a host, which runs in `/`, would take the reference for a folder there."""
    parts = (part for part in divided(reference) if part != DEFAULT_MODEL)
    return any(part and folder_of(f"/{part}") and not folder_of(part) for part in parts)


def _each(events: Generator[Event, None, str], deliver: Callable[[Event], None]) -> str:
    """Deliver all events; returns the generator's result."""
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            return str(end.value)
        deliver(event)


def _warn_once(text: str) -> None:
    """Log a warning that this process has not logged yet."""
    if text not in _warned:
        _warned.add(text)
        _log.warning("%s", text)
