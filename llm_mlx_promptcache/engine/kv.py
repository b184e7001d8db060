"""The way between the engine and the cache: rows that a request takes, and those it leaves."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from enum import Enum, auto
from functools import cached_property, partial
from typing import Any

from ..cache import device
from ..cache.explain import Why
from ..cache.forgetting import Forgotten, Moment
from ..cache.insertion import PathEnd, Rows
from ..cache.layers.layout import Cuts, NotCached, cuts_of, layout_of, position_of
from ..cache.memory.leases import Lease
from ..cache.memory.said import NOTHING_SAID, Said
from ..cache.prompt_cache import PromptCache
from ..models.layers import make_layers, vocab_size_of
from ..models.quantisation import is_quantised, quantise
from .chunks import checkpoints
from .preparation import Prepared

_log = logging.getLogger(__name__)

# Rows of headroom for the answer; mlx-lm's layers grow by as many at a time.
_HEADROOM = 256
# Tokens of other texts that an answer is drafted from.
_MOST_SAID = 64_000
# A longer rest of a prompt is written after its answer: until then the lease holds its only copy.
_LONGEST_BEFORE = 4096


class RowsIn(Enum):
    """The place of the rows with which a request's layers began."""

    CACHE = auto()  # the layers have copies, if there were any
    LAYERS = auto()  # they moved out of the cache, where others no longer find them


class KVHandle:
    """The holdings of one request: its layers, how far they got, and how much of that is kept."""

    def __init__(
        self, prepared: Prepared, lease: Lease, layers: list[Any], *, rows: Rows, since: Moment
    ) -> None:
        self.prepared = prepared
        self.since = since
        self.lease = lease
        self.layers = layers
        self.kept, self.kept_in = 0, ""
        self.rows_in = RowsIn.LAYERS if rows is Rows.GIVE and lease.cached else RowsIn.CACHE
        # The number of tokens of its path that others find in the cache.
        self.shared = lease.cached if self.rows_in is RowsIn.CACHE else 0
        self.number = 0  # by which other ranks know it
        self.stops: set[int] = set()  # places where its prefill must stop, to keep its rows
        self.ends: set[int] = set()  # places whose rows are kept after the chunk that passes them

    @property
    def whole(self) -> bool:
        """True if its layers may be used: no work of the device has failed since they were made.

        A failure does not say whose work it was, and layers grow in place: the rows that a finished
        step left in them may be gone with the next one.
        """
        return self.since.failures == device.failures()


class KVManager:
    """Leases for the requests of one model, and their return.

    `name` is its name for people, `identity` the common part of all its namespaces.
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
        self._cuts, self._position_known = Cuts.ANYWHERE, True
        try:
            layers = make_layers(model)
            layout = layout_of(layers)
            self._cuts = cuts_of(layout)
            self._position_known = position_of(layout, layers) is not None
        except NotCached as reason:
            self._uncached = self._uncached or Why("layers", detail=str(reason))

    def moment(self) -> Moment:
        """The present moment."""
        return self._cache.moment()

    def asked(self, prepared: Prepared) -> Moment:
        """The moment of a request that comes now: whoever forgets this model's means it too."""
        self._label(prepared)
        return self._cache.moment()

    def lease(
        self,
        prepared: Prepared,
        ids: array[int],
        rows: Rows,
        speed: float | None = None,
        asked: Moment | None = None,
    ) -> KVHandle:
        """Layers for `ids`, with the cached part of them: copied, or given if nobody waits.

        `speed` is the number of tokens that prefill computes in a second, if known; nothing
        forgotten since the request was `asked` comes back by it.
        """
        kv = prepared.request.kv
        self._label(prepared)
        if kv is not None:  # rows of two namespaces may be in one path then
            rows = Rows.COPY
        since = self._cache.moment()
        if asked is not None:
            since = since._replace(forgotten=asked.forgotten)
        lease = self._fetch(prepared, ids, rows, speed)
        return self._handle(prepared, ids, lease, rows, since)

    def look(self, prepared: Prepared, ids: array[int]) -> Lease:
        """The lease that a request would get, without layers; reads, counts and uses nothing."""
        if (kept_from := self._kept_from(prepared)) is not None:
            return kept_from
        return self._lookup(prepared, ids, self._cache.look)

    def lease_ahead(self, prepared: Prepared, ids: array[int], since: Moment) -> KVHandle:
        """`lease` for work that nobody asked for; nothing forgotten `since` comes back by it."""
        lease = self._lookup(prepared, ids, self._fetch_ahead)
        return self._handle(prepared, ids, lease, Rows.COPY, since)

    def running(self, handle: KVHandle, start: int, end: int) -> AbstractContextManager[None]:
        """Tokens of its prompt are run inside, which other ranks are told."""
        return nullcontext()

    def said_behind(self, prepared: Prepared) -> array[int]:
        """The tokens in memory behind this request's prompt."""
        if not self.keeps(prepared):
            return array("I")
        ids = prepared.transcript.ids
        return self._cache.said_behind(_said_in(prepared), ids, _MOST_SAID)

    def said(self, prepared: Prepared) -> Said:
        """Earlier text of this request's namespace, behind its prompt and elsewhere."""
        if not self.keeps(prepared):
            return NOTHING_SAID
        said = self._cache.said(_said_in(prepared), prepared.transcript.ids, _MOST_SAID)
        # A disk's tokens are checked: one that the model lacks is no guess.
        if len(said.behind) and max(said.behind) >= self._vocab_size:
            return said._replace(behind=array("I"))
        return said

    @cached_property
    def _vocab_size(self) -> int:
        return vocab_size_of(self._model)

    def holds(self, prepared: Prepared, path: array[int]) -> bool:
        """True if a path of this request is in memory, in either form of its rows."""
        namespaces = {prepared.namespace, prepared.plain_namespace}
        return any(self._cache.holds(namespace, path) for namespace in namespaces)

    def _handle(
        self, prepared: Prepared, ids: array[int], lease: Lease, rows: Rows, since: Moment
    ) -> KVHandle:
        """The holdings of a request that begins with `lease`."""
        kv = prepared.request.kv
        layers = lease.layers or make_layers(self._model)
        if kv is not None and lease.cached >= kv.start:
            quantise(layers, kv)
        handle = KVHandle(prepared, lease, layers, rows=rows, since=since)
        handle.stops, handle.ends = self._places(handle, len(ids))
        return handle

    def is_current(self, since: Moment) -> bool:
        """True if nothing was forgotten and no work of the device has failed since then."""
        return since == self._cache.moment()

    def count_ahead(self, tokens: int) -> None:
        """Count tokens that were prefilled before anybody asked."""
        self._cache.count_ahead(tokens)

    def insert(self, handle: KVHandle, path: array[int], rows: Rows = Rows.KEEP_OUT) -> None:
        """Insert the rows that `path` completed, each message under its tier.

        Rows that moved into the layers are kept out of the cache, copied where others need them,
        or returned with the layers.
        """
        self._insert(handle, path, rows)

    def _insert(self, handle: KVHandle, path: array[int], rows: Rows) -> None:
        prepared, done = handle.prepared, len(path)
        if not (self.keeps(prepared) and done and handle.layers and handle.whole):
            return
        namespace = self._namespace(handle)
        if namespace != handle.kept_in:  # rows that were quantised since belong elsewhere
            handle.kept, handle.kept_in = 0, namespace
        copies = rows is Rows.COPY or handle.rows_in is RowsIn.CACHE
        each = Rows.COPY if copies else Rows.KEEP_OUT
        passed = [
            boundary
            for boundary in prepared.transcript.boundaries
            if handle.kept < boundary.position <= done
        ]
        ends = [PathEnd(position, tier, each) for position, tier in passed]
        if not ends or ends[-1].at < done:
            ends.append(PathEnd(done, "assistant", each))
        if not self._position_known:  # at the last end, and no other
            ends = ends[-1:]
        if rows is Rows.RETURN:
            ends[-1] = ends[-1]._replace(rows=rows)
        self._cache.insert_path(
            namespace,
            path,
            handle.layers,
            ends,
            since=handle.since,
            on_disk=prepared.request.on_disk,
        )
        handle.kept = done
        if rows is not Rows.KEEP_OUT:
            handle.rows_in = RowsIn.CACHE
        handle.shared = done if handle.rows_in is RowsIn.CACHE else 0

    def insert_prompt(self, handle: KVHandle, path: array[int], *, others: bool) -> None:
        """Before an answer: keep its prompt for others or the disk, if it may be held twice."""
        small = len(path) - handle.lease.cached <= _LONGEST_BEFORE
        on_disk = handle.prepared.request.on_disk and self._cache.saves
        if others or (on_disk and small):
            self._insert(handle, path, Rows.COPY if others else Rows.KEEP_OUT)
        if on_disk and small:
            self._cache.flush(wait=False, short=False)

    def release(self, handle: KVHandle, path: array[int]) -> None:
        """At the end: return all rows in the layers; those that can't be kept are lost."""
        try:
            self._insert(handle, path, Rows.RETURN)
        except Exception as error:
            _log.warning("what a request had computed could not be kept: %s", error)
        handle.layers = []

    def drop(self, handle: KVHandle) -> None:
        """At the end of a request that has computed nothing, nothing is returned."""
        handle.layers = []

    def quantise(self, handle: KVHandle, done: int) -> None:
        """Switch to quantised keys and values where the settings say so."""
        kv = handle.prepared.request.kv
        if kv is not None and done == kv.start and not is_quantised(handle.layers):
            quantise(handle.layers, kv)

    def pin(self, handle: KVHandle, path: array[int]) -> None:
        """Keep a path from eviction."""
        if self.keeps(handle.prepared):
            self._cache.pin(self._namespace(handle), path)

    def set_pinned(self, namespace: str, path: array[int], *, pinned: bool) -> bool | None:
        """Keep a stored path from eviction, or no longer; False where it is not there.

        None where the namespace is none that this model was asked in.
        """
        return self._cache.set_pinned(namespace, path, pinned=pinned)

    def forget(self, days: float | None = None) -> Forgotten:
        """Forget all that is kept of this model, or what was unused for so many days."""
        return self._cache.forget(model=self._name, days=days)

    def flush(self, *, last: bool = False) -> None:
        """Write the rest to the disk; waits if it is the `last` time.

        A short answer waits in memory, so that it becomes part of the next turn's file.
        """
        self._cache.flush(wait=last, short=last)

    def rest(self) -> None:
        """Nobody asks any more for a while; other ranks are told."""

    def _label(self, prepared: Prepared) -> None:
        for namespace in {prepared.namespace, prepared.plain_namespace}:
            self._cache.label(namespace, self._name, self._identity)

    def _fetch(self, prepared: Prepared, ids: array[int], rows: Rows, speed: float | None) -> Lease:
        if (kept_from := self._kept_from(prepared)) is not None:
            return kept_from
        headroom = min(prepared.limit, _HEADROOM)
        return self._lookup(prepared, ids, self._fetching(headroom, rows, speed))

    def _fetching(
        self, headroom: int, rows: Rows, speed: float | None
    ) -> Callable[[str, array[int]], Lease]:
        """The function that leases a path of a namespace."""
        return partial(self._cache.fetch, headroom=headroom, rows=rows, prefill_speed=speed)

    def _fetch_ahead(self, namespace: str, ids: array[int]) -> Lease:
        return self._cache.fetch_ahead(namespace, ids)

    def _kept_from(self, prepared: Prepared) -> Lease | None:
        """The lease of a request that is kept from the cache; None for others."""
        if not prepared.request.use_cache:
            return Lease(None, 0, Why("off"))
        return None if self._uncached is None else Lease(None, 0, self._uncached)

    @staticmethod
    def _lookup(
        prepared: Prepared, ids: array[int], fetch: Callable[[str, array[int]], Lease]
    ) -> Lease:
        """The part of `ids` that `fetch` finds: quantised rows, or plain ones of a short path."""
        kv = prepared.request.kv
        lease = fetch(prepared.namespace, ids)
        if kv is None or lease.cached >= kv.start:
            return lease
        # Up to the start of quantising, rows are shared with requests that have none.
        return fetch(prepared.plain_namespace, ids[: kv.start + 1])

    def _namespace(self, handle: KVHandle) -> str:
        """The namespace where layers belong, as they are now."""
        prepared = handle.prepared
        plain = prepared.request.kv is not None and not is_quantised(handle.layers)
        return prepared.plain_namespace if plain else prepared.namespace

    def keeps(self, prepared: Prepared) -> bool:
        """True if anything of a request is kept."""
        return prepared.request.use_cache and self._uncached is None

    def _places(self, handle: KVHandle, length: int) -> tuple[set[int], set[int]]:
        """The places where prefill must stop, and those whose rows are kept without a stop.

        State is kept where it was taken; a window's buffer has all places of its chunk.
        """
        prepared = handle.prepared
        kv = prepared.request.kv
        stops = {kv.start} if kv is not None else set()
        if self._cuts is Cuts.ANYWHERE or not self.keeps(prepared):
            return stops, set()
        ends = {boundary.position for boundary in prepared.transcript.boundaries}
        ends |= {handle.lease.matched} | set(checkpoints(length))
        return (stops, ends) if self._cuts is Cuts.IN_CHUNKS else (stops | ends, set())


def _said_in(prepared: Prepared) -> str:
    """The namespace of a prompt's continuations: while it is short, that of plain rows."""
    kv = prepared.request.kv
    short = kv is not None and len(prepared.transcript.ids) < kv.start
    return prepared.plain_namespace if short else prepared.namespace
