"""GroupServer: the resident host of one model over several machines, in rank 0's process."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from ..config import MODEL_ID
from ..engine.engine import Engine
from ..engine.pool import cache_in_use, disk_store, hold_engine
from ..engine.ranks import EXIT_STATUS
from ..host.control import HANDLERS, pinned_span, to_clear, to_pin
from ..host.life import Life, Signs
from ..host.served import remember_end
from ..host.server import Server
from ..models.references import SERVED
from .lead import Lead
from .orders import LeadOrder

if TYPE_CHECKING:
    import socket

    from ..engine.events import Loading
    from ..engine.scheduler import Scheduler
    from ..host.connections import ClientConnection
    from ..host.place import Place

# For `serve` to ask: if it was ended before, nobody knows of this process. Then it is `keep`.
_UNASKED_SECONDS: Final = 15.0
_TELL_SECONDS: Final = 5.0  # for askers to be told why there is no more
# What is known where MLX, or the system, ends this process without a word.
_CUT_SHORT: Final = "its process ended while its ranks met, or loaded their parts"

Load = Callable[[Lead, Callable[["Loading"], None]], "Scheduler"]


class GroupServer(Server):
    """A host that answers for one model, whose ranks it has started; it stays until it is stopped.

    `load` meets the ranks and loads this one's part. The group's end is this process's.
    """

    def __init__(self, place: Place, mine: Mapping[str, Any], order: LeadOrder, load: Load) -> None:
        super().__init__(place, mine, Life(_UNASKED_SECONDS, time.monotonic()))
        self._place_of_group = place
        self._order = order
        self._load = load
        self._lead = Lead(order, self._ranks_ended)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.reference = f"{SERVED}{order.name}"
        self._handlers = {**HANDLERS, "clear": self._cleared, "pin": self._pinned}
        self._engine = hold_engine(self.reference, self._loaded)

    async def serve(self, listening: socket.socket) -> None:
        """Answer until the host's life is over, then end the other ranks."""
        self._loop = asyncio.get_running_loop()
        remember_end(self._place_of_group, "")
        giving_up = asyncio.create_task(self._give_up_loading())
        try:
            await super().serve(listening)
        finally:
            giving_up.cancel()
            await asyncio.to_thread(self._lead.close)

    async def engine_for(self, model: str) -> Engine:
        """The one engine that there is; ValueError for another model's."""
        if model != self.reference:
            raise ValueError(f"this host serves {MODEL_ID}/{self._order.name} alone")
        return self._engine

    async def control(self, ask: Mapping[str, Any]) -> Mapping[str, Any]:
        """As any host's; `ps` shows the ranks, and a model whose parts are elsewhere stays."""
        if ask.get("ask") == "unload":
            return {"unloaded": False}
        result = await super().control(ask)
        return {**result, "group": self._shown()} if ask.get("ask") == "ps" else result

    @contextmanager
    def asked_by(self, connection: ClientConnection, keep: float | None) -> Iterator[None]:
        """A request is under way; how long a group stays is no client's to say."""
        del keep
        with super().asked_by(connection, self._order.keep):
            yield

    def signs(self) -> Signs:
        """Nothing else holds this model: only that nobody can reach it speaks against staying."""
        return Signs(socket_gone=self.socket_gone)

    async def _give_up_loading(self) -> None:
        """At the end, wait for no rank that starts or loads: that may take half an hour."""
        await self._over.wait()
        if not self._engine.loaded:
            await asyncio.to_thread(self._lead.abandon)

    def _loaded(self, tell: Callable[[Loading], None]) -> Scheduler:
        remember_end(self._place_of_group, _CUT_SHORT)
        try:
            loaded = self._load(self._lead, tell)
            remember_end(self._place_of_group, "")
            return loaded
        except BaseException as error:
            if self._over.is_set():  # it was stopped, which is no fault to tell of
                remember_end(self._place_of_group, "")
            else:
                self._end(f"it could not be loaded: {error}", times=1)
            raise

    def _cleared(self, ask: Mapping[str, Any]) -> Mapping[str, Any]:
        """Forget what all ranks have of this model, in memory and on their disks.

        What else is in their folders is none of this host's.
        """
        model, days = to_clear(ask)
        if model not in (None, self._order.plan.model):
            if self._is_part(model):
                raise ValueError("each rank's part has another namespace: give the model's name")
            return {"memory": 0, "disk": 0}
        freed = self._engine.between_steps(lambda scheduler: scheduler.kv.forget(days))
        if freed is None:
            raise RuntimeError("its model is not loaded yet")
        return freed._asdict()

    def _pinned(self, ask: Mapping[str, Any]) -> Mapping[str, Any]:
        """Pin or unpin the path to a span on all ranks; `found` is 0 for one that is not theirs."""
        pinned, meant = ask.get("pinned") is True, to_pin(ask)
        if len(meant) != 1:
            return {"found": len(meant)}
        (_, namespace, path), model = meant[0], f"{MODEL_ID}/{self._order.name}"
        done = self._engine.between_steps(
            lambda scheduler: scheduler.kv.set_pinned(namespace, path, pinned=pinned)
        )
        if done is None:
            return {"found": 0}
        if not done:
            what = "pinned on none" if pinned else "not unpinned on all"
            raise ValueError(
                f"a rank of {model} has less than the {len(path)} tokens before the end of that"
                f" span, so it is {what} of them"
            )
        return pinned_span(meant[0])

    def _is_part(self, namespace: str) -> bool:
        """True if a namespace of what is served here begins so, in memory or on the disk."""
        cache, model = cache_in_use(), self._order.plan.model
        held = cache.models() if cache is not None else []
        names = {name for one in held for name in one.namespaces}
        names |= {one.namespace for one in disk_store().listing().spans if one.model == model}
        return any(name.startswith(namespace) for name in names)

    def _shown(self) -> Mapping[str, Any]:
        plan = self._order.plan
        return {
            "name": self._order.name,
            "model": plan.model,
            "split": plan.split,
            "backend": plan.backend.value,
            "ranks": self._lead.shown(),
        }

    def _ranks_ended(self, why: str) -> None:
        """A rank is gone: who asks is told, and the process ends, whatever its threads wait for."""
        try:
            self._end(why, times=2)
            until = time.monotonic() + _TELL_SECONDS
            while self._open and time.monotonic() < until:
                time.sleep(0.01)
        finally:
            os._exit(EXIT_STATUS)

    def _end(self, why: str, times: int) -> None:
        """Remember why, and be asked to stop: once to take nothing new, twice to cut what goes on.

        From any thread.
        """
        remember_end(self._place_of_group, why)
        assert self._loop is not None
        for _ in range(times):
            self._loop.call_soon_threadsafe(self.stop, why)
