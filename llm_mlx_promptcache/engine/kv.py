"""Between the engine and the cache: what a request takes from it, and what it leaves there."""

from __future__ import annotations

import logging
from array import array
from typing import Any

from ..cache import device
from ..cache.explain import Why
from ..cache.insertion import PathEnd, Rows
from ..cache.layers.layout import NotCached, cut_anywhere, layout_of, position_of
from ..cache.memory.leases import Lease
from ..cache.prompt_cache import PromptCache
from ..models.layers import make_layers
from ..models.quantisation import is_quantised, quantise
from .chunks import checkpoints
from .preparation import Prepared

_log = logging.getLogger(__name__)

# Rows of headroom for the answer; mlx-lm's layers grow by as many at a time.
_ROOM = 256
# A longer rest of a prompt is written after its answer: until then the lease has its only copy.
_BEHIND = 4096


class KVHandle:
    """What one request holds: layers, how far they got, and how much of that is kept."""

    def __init__(
        self, prepared: Prepared, lease: Lease, layers: list[Any], taken: bool, since: int
    ) -> None:
        self.prepared = prepared
        self.since = since  # how often the device had failed before
        self.lease = lease
        self.layers = layers
        self.kept, self.kept_in = 0, ""
        # Whether rows moved out of the cache, and how many of its tokens others find there.
        self.away = taken and lease.cached > 0
        self.at_home = 0 if taken else lease.cached
        self.places: set[int] = set()

    @property
    def whole(self) -> bool:
        """Whether its layers may be used: no work of the device has failed since they were made.

        A failure does not say whose work it was, and layers grow in place: what a finished step
        left in them may be gone with the next one.
        """
        return self.since == device.failures()


class KVManager:
    """Leases for the requests of one model, and their way home.

    `name` is what people call it, `identity` what all of its namespaces have in common.
    """

    def __init__(
        self,
        model: Any,
        cache: PromptCache,
        name: str,
        uncached: str = "",
        identity: str = "",
    ) -> None:
        self._model = model
        self._cache = cache
        self._name = name
        self._identity = identity
        self._uncached = Why("changed", detail=uncached) if uncached else None
        self._stops, self._counts = False, True
        try:
            layers = make_layers(model)
            layout = layout_of(layers)
            self._stops = not cut_anywhere(layout)
            self._counts = position_of(layout, layers) is not None
        except NotCached as reason:
            self._uncached = self._uncached or Why("layers", detail=str(reason))

    def lease(
        self, prepared: Prepared, ids: array[int], take: bool, speed: float | None = None
    ) -> KVHandle:
        """Layers for `ids`, with what the cache has of them; `take`: nobody else is waiting.

        `speed` is how many tokens of them a second of prefill computes, where that is known.
        """
        kv = prepared.request.kv
        for namespace in {prepared.namespace, prepared.plain_namespace}:
            self._cache.label(namespace, self._name, self._identity)
        # Rows of two namespaces may be in one path then, and each finds its own at home.
        take, since = take and kv is None, device.failures()
        lease = self._fetch(prepared, ids, take, speed)
        layers = lease.layers or make_layers(self._model)
        if kv is not None and lease.cached >= kv.start:
            quantise(layers, kv)
        handle = KVHandle(prepared, lease, layers, take, since)
        handle.places = self._places(handle, len(ids))
        return handle

    def keep(
        self, handle: KVHandle, path: array[int], last: bool = False, back: bool = False
    ) -> None:
        """Insert what `path` made complete, each message under its tier; `last`: layers go too.

        Rows that moved into the layers stay there till then, or until others need them (`back`).
        """
        prepared, done = handle.prepared, len(path)
        if not (self._keeps(prepared) and done and handle.layers and handle.whole):
            return
        namespace = self._namespace(handle)
        if namespace != handle.kept_in:  # rows that were quantised since belong elsewhere
            handle.kept, handle.kept_in = 0, namespace
        bounds = prepared.transcript.boundaries
        rows = Rows.KEEP_OUT if handle.away and not back else Rows.COPY
        passed = [b for b in bounds if handle.kept < b.position <= done]
        ends = [PathEnd(b.position, b.tier, rows) for b in passed]
        if not ends or ends[-1].at < done:
            ends.append(PathEnd(done, "assistant", rows))
        if not self._counts:  # they can't tell where they stand: at the last end, and no other
            ends = ends[-1:]
        if last:
            ends[-1] = ends[-1]._replace(rows=Rows.RETURN)
        self._cache.insert_path(
            namespace,
            path,
            handle.layers,
            ends,
            since=handle.since,
            on_disk=prepared.request.on_disk,
        )
        handle.kept = done
        handle.away = handle.away and not (last or back)
        handle.at_home = 0 if handle.away else done

    def write_behind(self, handle: KVHandle, path: array[int], *, shared: bool) -> None:
        """Before an answer: keep its prompt, for others or the disk, where it may be held twice."""
        small = len(path) - handle.lease.cached <= _BEHIND
        on_disk = handle.prepared.request.on_disk and self._cache.saves
        if shared or (on_disk and small):
            self.keep(handle, path, back=shared)
        if on_disk and small:
            self._cache.flush(wait=False, short=False)

    def bring_home(self, handle: KVHandle, path: array[int]) -> None:
        """At the end: insert all that the layers hold, which go; what can't be kept is lost."""
        try:
            self.keep(handle, path, last=True)
        except Exception as error:
            _log.warning("what a request had computed could not be kept: %s", error)
        handle.layers = []

    def quantise(self, handle: KVHandle, done: int) -> None:
        """Where the settings say so, go on with quantised keys and values."""
        kv = handle.prepared.request.kv
        if kv is not None and done == kv.start and not is_quantised(handle.layers):
            quantise(handle.layers, kv)

    def pin(self, handle: KVHandle, path: array[int]) -> None:
        """Keep a path whatever happens."""
        if self._keeps(handle.prepared):
            self._cache.pin(self._namespace(handle), path)

    def settle(self, *, last: bool = False) -> None:
        """Have the disk written what is left to write; wait if it is the last.

        A short answer waits in memory, so that it becomes part of the next turn's file.
        """
        self._cache.flush(wait=last, short=last)

    def _fetch(self, prepared: Prepared, ids: array[int], take: bool, speed: float | None) -> Lease:
        request = prepared.request
        if not request.use_cache:
            return Lease(None, 0, Why("off"))
        if self._uncached is not None:
            return Lease(None, 0, self._uncached)
        room = min(prepared.limit, _ROOM)
        rows = Rows.GIVE if take else Rows.COPY
        lease = self._cache.fetch(prepared.namespace, ids, room, rows=rows, prefill_speed=speed)
        if request.kv is None or lease.cached >= request.kv.start:
            return lease
        # Up to where quantising starts, rows are those of everybody else.
        plain = ids[: request.kv.start + 1]
        namespace = prepared.plain_namespace
        return self._cache.fetch(namespace, plain, room, rows=rows, prefill_speed=speed)

    def _namespace(self, handle: KVHandle) -> str:
        """Where layers belong, as they are now."""
        prepared = handle.prepared
        plain = prepared.request.kv is not None and not is_quantised(handle.layers)
        return prepared.plain_namespace if plain else prepared.namespace

    def _keeps(self, prepared: Prepared) -> bool:
        return prepared.request.use_cache and self._uncached is None

    def _places(self, handle: KVHandle, length: int) -> set[int]:
        """Where prefill must stop: layers that can't be cut are kept where they were taken."""
        prepared = handle.prepared
        kv = prepared.request.kv
        places = {kv.start} if kv is not None else set()
        if self._stops and self._keeps(prepared):
            places |= {boundary.position for boundary in prepared.transcript.boundaries}
            places |= {handle.lease.matched} | set(checkpoints(length))
        return places
