"""DiskOrder: the disk evicts by recency, or by what has saved more of late in shadow; no MLX.

Stored rows alone must tell it (worth.py), for any process may evict. Whether it pays is told by the
requests that this process makes: the spans that it stored and what became of them, played as memory
plays its own (memory/guarded.py). A process that has seen too little goes by recency.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable, Sequence
from typing import Any, Final

from .memory.guarded import Guarded
from .memory.leaf_order import LeafOrder
from .memory.policies import Entry, Policy, Recency
from .memory.shadow import MOST_SHADOWED
from .store import Entered
from .worth import StoredOrder, density, stored_weight


class FoundOnce(Recency):
    """Every tier counts, and what was found once is expected again: `StoredOrder.FOUND`."""

    def bucket(self, entry: Entry[Any]) -> Hashable:
        """As the index's: found or not, tier and density."""
        return entry.uses > 0, entry.tier, density(entry.tokens, entry.nbytes)

    def weight(self, tier: int, *, returned: bool) -> float:
        """The weight of a row."""
        return stored_weight(StoredOrder.FOUND, tier, found=returned)


class GuardedRows(Guarded):
    """`Recency`; `FoundOnce`, or plain LRU, for as long as that would have saved more tokens."""

    def _others(self) -> list[tuple[Policy, int]]:
        return [(FoundOnce(), 0), (Policy(), 0)]

    def bucket(self, entry: Entry[Any]) -> Hashable:
        """One that serves each of them."""
        return entry.uses > 0, entry.tier, density(entry.tokens, entry.nbytes)

    @property
    def preferred(self) -> StoredOrder:
        """The order that leads, in words of rows."""
        leading = self.leading
        if leading is None:
            return StoredOrder.RECENCY
        return StoredOrder.FOUND if isinstance(leading, FoundOnce) else StoredOrder.LRU


class DiskOrder:
    """A watch over the spans that this process stored (`EvictionWatch`); for any thread.

    Others may evict some of them unseen: that is noticed when they are stored again. Beyond
    `MOST_SHADOWED` spans no more are watched.
    """

    def __init__(self, tiers: Sequence[str]) -> None:
        self._tiers: Final = tuple(tiers)
        self._policy = GuardedRows()
        self._order: LeafOrder[str] = LeafOrder(self._tiers, self._policy, 0)
        self._entries: dict[str, Entry[str]] = {}
        self._by_path: dict[Hashable, str] = {}
        self._process = os.getpid()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def preferred(self) -> StoredOrder:
        """The order to evict in now."""
        with self._locked():
            return self._policy.preferred

    def stored(self, span: Entered) -> None:
        """A span was stored; one that hangs on what was just used or stored is the same request."""
        with self._locked():
            if (known := self._by_path.get(span.path)) is not None:
                self._take(self._entries[known], evicted=True)
            above = self._entries.get(span.parent)
            if above is None or above.last_used != self._order.now:
                self._order.advance()
            if len(self) >= MOST_SHADOWED:
                return
            tier = self._tiers[min(span.tier, len(self._tiers) - 1)]
            self._entries[span.file_id] = self._order.push(
                span.file_id, tier, span.nbytes, span.tokens, above, span.path
            )
            self._by_path[span.path] = span.file_id

    def used(self, file_ids: Sequence[str]) -> None:
        """A request found these, in the order of its path."""
        with self._locked():
            known = [self._entries[one] for one in file_ids if one in self._entries]
            if known:
                self._order.advance()
                self._order.use(known)

    def evicted(self, file_ids: Sequence[str]) -> None:
        """These were evicted, the ends of paths first."""
        self._leave(file_ids, evicted=True)

    def removed(self, file_ids: Sequence[str] | None) -> None:
        """These were removed for another reason; None for all."""
        if file_ids is not None:
            self._leave(file_ids, evicted=False)
            return
        with self._locked():
            self._order.clear()
            self._entries.clear()
            self._by_path.clear()

    def _leave(self, file_ids: Sequence[str], *, evicted: bool) -> None:
        with self._locked():
            for file_id in file_ids:
                if (entry := self._entries.get(file_id)) is not None:
                    self._take(entry, evicted=evicted)

    def _take(self, entry: Entry[str], *, evicted: bool) -> None:
        """Take an entry out, and first those on it that others must have evicted unseen."""
        left = [entry]
        while left:
            if left[-1].children:
                left += [one for one in self._entries.values() if one.parent is left[-1]]
                continue
            gone = left.pop()
            del self._entries[gone.item]
            del self._by_path[gone.key]
            (self._order.evict if evicted else self._order.remove)(gone)

    def _locked(self) -> threading.Lock:
        if self._process != os.getpid():  # the parent's may be held by a thread that stayed there
            self._process, self._lock = os.getpid(), threading.Lock()
        return self._lock
