"""Shadow: what a policy would have kept of the same requests; no MLX here.

An order of keys (digests of paths) and sizes beside the real one: no token, no rows. It follows
what happens to real entries and misses on its own, so what it finds is what that policy would have
found, up to where two orders cut a path into other spans.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Final

from .leaf_order import LeafOrder
from .policies import Entry, Policy

MOST_SHADOWED: Final = 65_536  # entries, however many the real order has


class Shadow:
    """A policy's own cache of keys; entries without a key are none of its business.

    `ghosts` are `LeafOrder`'s: a policy that looks at recency alone needs none.
    """

    def __init__(self, tiers: Sequence[str], policy: Policy, ghosts: int = 0) -> None:
        self._order: LeafOrder[Hashable] = LeafOrder(tiers, policy, ghosts)
        self._held: dict[Hashable, Entry[Hashable]] = {}

    def __len__(self) -> int:
        return len(self._held)

    @property
    def nbytes(self) -> int:
        """Bytes of what it would hold."""
        return self._order.nbytes

    def ask(self, entry: Entry[Any]) -> bool:
        """A request came to this entry: whether it would have been here. It is, from now on."""
        mine = self._mine(entry)
        self._order.now = entry.last_used
        if mine is None:
            self._add(entry)
        else:
            self._order.use([mine])
        return mine is not None

    def touch(self, entry: Entry[Any]) -> None:
        """An insert passed over this entry."""
        mine = self._mine(entry)
        self._order.now = entry.last_used
        if mine is None:
            self._add(entry)
        else:
            self._order.touch([mine])

    def split(self, entry: Entry[Any], upper: Entry[Any]) -> None:
        """An entry's first part became one of its own."""
        mine = self._mine(entry)
        if mine is not None and upper.key is not None and upper.key not in self._held:
            parted = self._order.split(mine, upper.key, upper.nbytes, upper.tokens, upper.key)
            self._held[upper.key] = parted

    def follow(self, entry: Entry[Any]) -> None:
        """Take on an entry's size, its tier and its holds."""
        mine = self._mine(entry)
        if mine is None:
            return
        if (mine.nbytes, mine.tokens) != (entry.nbytes, entry.tokens):
            self._order.resize(mine, entry.nbytes, entry.tokens)
        if mine.tier < entry.tier:
            self._order.promote(mine, self._order.tiers[entry.tier])
        self._hold(mine, entry.holds)

    def remove(self, entry: Entry[Any]) -> None:
        """The owner wants it no more; what hangs on it here keeps it, and it ages."""
        mine = self._mine(entry)
        if mine is None:
            return
        self._hold(mine, 0)
        if not mine.children:
            self._order.remove(mine)
            del self._held[mine.item]

    def trim(self, now: int, nbytes: int) -> None:
        """Evict until no more than so many bytes are left."""
        self._order.now = now
        while self._order.nbytes > nbytes or len(self) > MOST_SHADOWED:
            victim = self._order.pop()
            if victim is None:
                break  # what is left is held
            del self._held[victim.item]

    def _mine(self, entry: Entry[Any]) -> Entry[Hashable] | None:
        return self._held.get(entry.key)  # None is no key of anything held

    def _add(self, entry: Entry[Any]) -> None:
        if entry.key is None:
            return
        parent = self._mine(entry.parent) if entry.parent is not None else None
        tier = self._order.tiers[entry.tier]
        mine = self._order.push(entry.key, tier, entry.nbytes, entry.tokens, parent, entry.key)
        self._held[entry.key] = mine
        self._hold(mine, entry.holds)

    def _hold(self, mine: Entry[Hashable], holds: int) -> None:
        for _ in range(mine.holds, holds):
            self._order.hold(mine)
        for _ in range(holds, mine.holds):
            self._order.release(mine)
