"""LeafOrder: entries that hang on each other, and a policy's victim among their ends; no MLX here.

What an order is told, and by whom, stands with `CacheOrder` (order.py), which gives it its policy.
Whatever happens to an entry is told to the policy too. Not locked, the owner is.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Final, Generic, TypeVar

from .policies import Entry, Ghost, Policy

T = TypeVar("T")

GHOSTS_PER_ENTRY: Final = 4
MOST_GHOSTS: Final = 65_536  # some 15 MB, however large the cache


class GhostList:
    """The latest evicted entries, so many for each that is held; the oldest is forgotten."""

    def __init__(self, per_entry: int) -> None:
        self._per_entry = per_entry
        self._ghosts: OrderedDict[Hashable, Ghost] = OrderedDict()
        self._held = {False: 0, True: 0}  # bytes by kind
        self.evicted = 0  # bytes, ever

    def __len__(self) -> int:
        return len(self._ghosts)

    def add(self, entry: Entry[Any], live: int) -> None:
        """Remember an entry that is evicted from among `live` others."""
        self.evicted += entry.nbytes
        if entry.key is None:
            return
        self.take(entry.key)
        ghost = Ghost(entry.returned, entry.extended, entry.uses, entry.nbytes, self.evicted)
        self._ghosts[entry.key] = ghost
        self._held[ghost.returned] += ghost.nbytes
        limit = min(MOST_GHOSTS, self._per_entry * max(live, 256))
        while len(self._ghosts) > limit:
            self.take(next(iter(self._ghosts)))

    def take(self, key: Hashable) -> Ghost | None:
        """Forget an entry, and return its record."""
        ghost = self._ghosts.pop(key, None)
        if ghost is not None:
            self._held[ghost.returned] -= ghost.nbytes
        return ghost

    def share(self, ghost: Ghost) -> float:
        """The part of remembered bytes that is of this ghost's kind, itself included."""
        own = self._held[ghost.returned] + ghost.nbytes
        return max(own, 1) / max(own + self._held[not ghost.returned], 1)


class LeafOrder(Generic[T]):
    """Entries in the order in which they are evicted under `policy`.

    For each of them `ghosts` are remembered of what was evicted.
    """

    def __init__(
        self, tiers: Sequence[str], policy: Policy, ghosts: int = GHOSTS_PER_ENTRY
    ) -> None:
        self.tiers: Final = tuple(tiers)
        self.policy: Final = policy
        self.now = 0
        self._per_entry = ghosts
        self.ghosts = GhostList(ghosts)
        self._serial = self._stamp = 0
        self._reset()

    def _reset(self) -> None:
        self.nbytes = 0
        self._entries: dict[int, Entry[T]] = {}
        self._counts = [0] * len(self.tiers)
        # Tickets by serial and stamp: one that is no longer valid must keep no span alive.
        self._heaps: dict[Hashable, list[tuple[float, int, int]]] = {}
        self._queued = 0
        self.policy.begin(self.tiers)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, entry: Entry[T]) -> bool:
        return self._entries.get(entry.serial) is entry

    def advance(self) -> int:
        """Begin a new request; returns its tick."""
        self.now += 1
        return self.now

    def rank(self, tier: str) -> int:
        """A tier's rank, 0 for the least persistent; ValueError for one that is unknown."""
        if tier not in self.tiers:
            raise ValueError(f"tier is {tier!r}; it is one of {', '.join(self.tiers)}")
        return self.tiers.index(tier)

    def push(
        self,
        item: T,
        tier: str,
        nbytes: int,
        tokens: int,
        parent: Entry[T] | None = None,
        key: Hashable = None,
    ) -> Entry[T]:
        """Store a span under `parent`; `key` (its path's hash) finds what is remembered of it."""
        rank = self.rank(tier)
        if parent is not None:
            self._check(parent)
        ghost = self.ghosts.take(key) if key is not None else None
        # The first continuation of a path that came back is a conversation going on; a second
        # one is a new question on an old text, and most of these are never asked again.
        returned = parent is not None and parent.returned and not parent.extended
        entry = self._add(item, rank, nbytes, tokens, parent, key)
        entry.returned = returned or ghost is not None
        if parent is not None:
            parent.children += 1
            # A message's first answer does not count: the next turn often renders it anew.
            answer = rank == 0 < parent.tier
            parent.extended |= parent.answered or not answer
            parent.answered |= answer
            self._enqueue(parent)
        if ghost is not None:
            self._learn(entry, ghost)
        self._enqueue(entry)
        self.policy.stored(entry)
        return entry

    def split(
        self, entry: Entry[T], item: T, nbytes: int, tokens: int, key: Hashable = None
    ) -> Entry[T]:
        """Make a span's first part a span of its own, `item`; `resize` the rest, `entry`.

        A path parts or ends there, so the first part came back, and the rest did not.
        """
        self._check(entry)
        self.ghosts.take(key)
        upper = self._add(item, entry.tier, nbytes, tokens, entry.parent, key)
        upper.last_used, upper.inserted = entry.last_used, entry.inserted
        upper.uses, upper.returned = entry.uses + 1, True
        upper.children, upper.extended = 1, True
        entry.parent = upper
        self.policy.parted(entry, upper)
        return upper

    def use(self, entries: Iterable[Entry[T]]) -> None:
        """Note that a fetch found these, whole: they came back."""
        for entry in entries:
            entry.last_used = self.now
            entry.uses += 1
            entry.returned = True
            self._enqueue(entry)
            self.policy.found(entry)

    def touch(self, entries: Iterable[Entry[T]]) -> None:
        """Note that an insert passed over these, or a fetch matched one in part: recent only."""
        for entry in entries:
            entry.last_used = entry.inserted = self.now
            self._enqueue(entry)
            self.policy.passed(entry)

    def promote(self, entry: Entry[T], tier: str) -> None:
        """Note that the span also ends a path of `tier`; it keeps the more persistent of both."""
        self._check(entry)
        rank = max(entry.tier, self.rank(tier))
        self._counts[entry.tier] -= 1
        self._counts[rank] += 1
        entry.tier = rank
        self._enqueue(entry)
        self.policy.changed(entry)

    def resize(self, entry: Entry[T], nbytes: int, tokens: int) -> None:
        """Note that the span holds more or less than it did."""
        self._check(entry)
        self.nbytes += nbytes - entry.nbytes
        entry.nbytes, entry.tokens = nbytes, tokens
        self._enqueue(entry)
        self.policy.changed(entry)

    def hold(self, entry: Entry[T]) -> None:
        """Keep this and all it hangs on for a lease or pin; `release` it as often."""
        entry.holds += 1
        self._enqueue(entry)
        self.policy.changed(entry)

    def release(self, entry: Entry[T]) -> None:
        """Undo one `hold`."""
        if not entry.holds:
            raise ValueError("release without hold")
        entry.holds -= 1
        self._enqueue(entry)
        self.policy.changed(entry)

    def remove(self, entry: Entry[T]) -> None:
        """Take a leaf out for its owner; it is not remembered."""
        self._take_out(entry)
        self.policy.removed(entry)

    def pop(self) -> Entry[T] | None:
        """Evict the next and remember it; None if nothing may be evicted."""
        heads = {bucket: head for bucket in list(self._heaps) if (head := self._head(bucket))}
        if not heads:
            return None
        victim = heads[self.policy.choose(heads, self.now, self._counts)]
        self.evict(victim)
        return victim

    def evict(self, entry: Entry[T]) -> None:
        """Take out a leaf that was evicted, and remember it."""
        self._take_out(entry)
        self.ghosts.add(entry, len(self))
        self.policy.evicted(entry, self.now, self.nbytes)

    def clear(self) -> None:
        """Forget all entries, and all records."""
        self.ghosts = GhostList(self._per_entry)
        self._reset()

    def _add(
        self, item: T, tier: int, nbytes: int, tokens: int, parent: Entry[T] | None, key: Hashable
    ) -> Entry[T]:
        self._serial += 1
        entry = Entry(item, tier, nbytes, tokens, parent, key, self._serial, self.now, self.now)
        self._entries[entry.serial] = entry
        self._counts[tier] += 1
        self.nbytes += nbytes
        return entry

    def _take_out(self, entry: Entry[T]) -> None:
        self._check(entry)
        if entry.children:
            raise ValueError(f"{entry.children} entries hang on this one; remove them first")
        del self._entries[entry.serial]
        self._counts[entry.tier] -= 1
        self.nbytes -= entry.nbytes
        entry.stamp = -1
        if entry.parent is not None:
            entry.parent.children -= 1
            self._enqueue(entry.parent)

    def _check(self, entry: Entry[T]) -> None:
        if entry not in self:
            raise ValueError("the entry is not in this order, or not any more")

    def _learn(self, entry: Entry[T], ghost: Ghost) -> None:
        entry.uses, entry.extended = ghost.uses + 1, ghost.extended
        # One evicted long ago would not have been saved by a somewhat larger share of the memory.
        if self.ghosts.evicted - ghost.at < self.nbytes:
            part = ghost.nbytes / max(self.nbytes, 1)
            self.policy.came_back(ghost, self.ghosts.share(ghost), part)

    def _enqueue(self, entry: Entry[T]) -> None:
        """Give an entry its one valid ticket, or none; older ones are skipped when met."""
        entry.stamp = -1
        if not entry.evictable or entry not in self:
            return
        self._stamp += 1
        entry.stamp = self._stamp
        heap = self._heaps.setdefault(self.policy.bucket(entry), [])
        heapq.heappush(heap, (self.policy.rank(entry), entry.serial, entry.stamp))
        self._queued += 1
        if self._queued > 2 * len(self._entries) + 64:
            self._sweep()

    def _head(self, bucket: Hashable) -> Entry[T] | None:
        heap = self._heaps[bucket]
        while heap:
            if (entry := self._entry_of(heap[0])) is not None:
                return entry
            heapq.heappop(heap)
            self._queued -= 1
        del self._heaps[bucket]
        return None

    def _entry_of(self, ticket: tuple[float, int, int]) -> Entry[T] | None:
        """The entry whose valid ticket this is, if it still is one."""
        _, serial, stamp = ticket
        entry = self._entries.get(serial)
        return entry if entry is not None and entry.stamp == stamp else None

    def _sweep(self) -> None:
        """Drop the tickets that are no longer valid, once they are more than half."""
        for bucket, heap in list(self._heaps.items()):
            kept = [ticket for ticket in heap if self._entry_of(ticket) is not None]
            heapq.heapify(kept)
            self._heaps[bucket] = kept
            if not kept:
                del self._heaps[bucket]
        self._queued = sum(map(len, self._heaps.values()))
