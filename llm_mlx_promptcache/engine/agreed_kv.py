"""AgreedKV: a rank's leases, each as long as that of every other rank."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..cache.explain import Why
from ..cache.forgetting import Forgotten
from ..cache.insertion import Rows
from ..cache.lookup import Reach
from ..cache.memory.leases import Lease
from ..cache.prompt_cache import PromptCache
from ..models.errors import one_line
from .agreement import lease_alike
from .kv import KVHandle, KVManager
from .terms import Terms

if TYPE_CHECKING:
    from .ranks import Ranks

_LONGEST_NAME: Final = 100


class Belongings(NamedTuple):
    """A rank's cache, what people call its model, and the identity of its rows."""

    cache: PromptCache
    name: str
    identity: str


class AgreedKV(KVManager):
    """A `KVManager` of one rank: all ranks lease the same prompt at the same time."""

    def __init__(self, model: Any, mine: Belongings, ranks: Ranks, terms: Terms) -> None:
        super().__init__(model, mine.cache, mine.name, terms.uncached, mine.identity)
        self._ranks = ranks
        # What one rank's layers need, such as a stop at each message's end, all do.
        self._cuts, self._position_known = terms.cuts, terms.position_known
        if terms.uncached:
            self._uncached = Why("changed", detail=terms.uncached)

    def pin(self, handle: KVHandle, path: array[int]) -> None:
        """`KVManager.pin`, on all ranks at once; ValueError on all where one of them can't."""
        own: ValueError | None = None
        try:
            super().pin(handle, path)
        except ValueError as error:
            own = error
        if not self._ranks.agree(own is None)[0][0]:
            raise own or ValueError(
                f"another rank holds less than the {len(path)} tokens to pin; it has no memory left"
            )

    def set_pinned(self, namespace: str, path: array[int], *, pinned: bool) -> bool | None:
        """`KVManager.set_pinned`, on all ranks at once; False on all where one of them can't."""
        own = bool(super().set_pinned(namespace, path, pinned=pinned))
        alike = bool(self._ranks.agree(own)[0][0])
        if own and pinned and not alike:
            super().set_pinned(namespace, path, pinned=False)
        return alike

    def forget(self, days: float | None = None) -> Forgotten:
        """`KVManager.forget`, on all ranks at once; what all of them freed."""
        own = super().forget(days)
        left = self._ranks.name if days is None and self._cache.has_stored(self._name) else ""
        found = self._ranks.gather({"of": [own.memory, own.disk], "left": left}, _freed)
        return Forgotten(found["memory"], found["disk"], tuple(found["left"]))

    def _fetching(
        self, headroom: int, rows: Rows, speed: float | None
    ) -> Callable[[str, array[int]], Lease]:
        def fetch(namespace: str, ids: array[int]) -> Lease:
            asked = _FetchingNow(self._cache, namespace, ids, headroom, rows, speed)
            return lease_alike(self._ranks, ids, asked)

        return fetch

    def _fetch_ahead(self, namespace: str, ids: array[int]) -> Lease:
        return lease_alike(self._ranks, ids, _FetchingAhead(self._cache, namespace, ids))


def _freed(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The bytes that all ranks freed, and the hosts whose disks still have something."""
    memory, disk = zip(*(map(int, part["of"]) for part in parts), strict=True)
    left = [one_line(str(part["left"]), _LONGEST_NAME) for part in parts if part["left"]]
    return {"memory": sum(memory), "disk": sum(disk), "left": left}


class _FetchingNow(NamedTuple):
    """A prompt that a request asks with; `agreement.Fetching`."""

    cache: PromptCache
    namespace: str
    ids: array[int]
    headroom: int
    rows: Rows
    speed: float | None

    def reach(self, most: int) -> Reach:
        return self.cache.reach(self.namespace, self.ids, most)

    def take(self, most: int) -> Lease:
        return self.cache.fetch(
            self.namespace,
            self.ids,
            self.headroom,
            rows=self.rows,
            prefill_speed=self.speed,
            most=most,
        )

    def put_back(self, lease: Lease) -> None:
        self.cache.take_back(self.namespace, self.ids, lease)


class _FetchingAhead(NamedTuple):
    """One that nobody asks with yet."""

    cache: PromptCache
    namespace: str
    ids: array[int]

    def reach(self, most: int) -> Reach:
        return self.cache.reach(self.namespace, self.ids, most)

    def take(self, most: int) -> Lease:
        return self.cache.fetch_ahead(self.namespace, self.ids, most=most)

    def put_back(self, lease: Lease) -> None:
        """Nothing was counted, and a copy can go."""
