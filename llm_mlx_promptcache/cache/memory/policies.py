"""The policies that an order (leaf_order.py) asks, and the entries they compare; no MLX here.

The default chooses between `PastUse` and `Recency` (guarded.py). Their comparison is `worth`
(worth.py). What was measured, against what, and why these stayed: docs/eviction.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from ..worth import RETURNED_BIAS, density, history_weight, recency_weight, worth

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Entry(Generic[T]):
    """The order's record of one span; the owner reads it, and only the order writes it."""

    item: T
    tier: int  # its rank among the order's tiers
    nbytes: int  # freed by evicting it
    tokens: int  # the cost of evicting it: tokens to compute again while its parent is there
    parent: Entry[T] | None
    key: Hashable  # the path's hash, by which it is remembered; None: it is not
    serial: int
    last_used: int  # tick of the last use or touch
    inserted: int  # tick of the last push or touch
    uses: int = 0
    returned: bool = False  # its path came back, or it continues one that did
    extended: bool = False  # something hung on it once, even if that is gone
    answered: bool = False  # an answer did, of the least persistent tier
    children: int = 0
    holds: int = 0
    stamp: int = -1  # of its one valid ticket in a heap

    @property
    def evictable(self) -> bool:
        """Nothing hangs on it and nobody holds it."""
        return not self.children and not self.holds


class Ghost(NamedTuple):
    """The record of an evicted entry."""

    returned: bool
    extended: bool
    uses: int
    nbytes: int
    at: int  # bytes evicted before it, ever


Heads = Mapping[Any, Entry[Any]]  # by bucket, the entry that would leave it first


class Policy:
    """Least recently used; the others override what they do differently.

    Entries of one `bucket` leave in the order of `rank`, which changes only when the entry does;
    `choose` compares the heads of the buckets, so a pop looks at a handful, never at all.
    """

    def bucket(self, entry: Entry[Any]) -> Hashable:
        """The class of entries that keep their order among each other while time passes."""
        return None

    def rank(self, entry: Entry[Any]) -> float:
        """The rank within a bucket; the least is evicted first."""
        return entry.last_used

    def choose(self, heads: Heads, now: int, counts: Sequence[int]) -> Hashable:
        """The bucket whose head is evicted; `counts` is entries by tier."""
        return _least(heads, lambda bucket, head: self.rank(head))

    def came_back(self, ghost: Ghost, share: float, part: float) -> None:
        """Note that a remembered entry was stored again; `part` is its part of the bytes held now.

        `share` is the part of all remembered bytes that is of its kind (returned, or not).
        """

    # What happens to entries is told to every policy; most don't mind.

    def begin(self, tiers: Sequence[str]) -> None:
        """An order of these tiers is empty and will ask."""

    def stored(self, entry: Entry[Any]) -> None:
        """It was not there."""

    def found(self, entry: Entry[Any]) -> None:
        """A fetch found it."""

    def passed(self, entry: Entry[Any]) -> None:
        """An insert passed over it, or a fetch matched it in part."""

    def parted(self, entry: Entry[Any], upper: Entry[Any]) -> None:
        """Its first part is an entry of its own now, `upper`."""

    def changed(self, entry: Entry[Any]) -> None:
        """Its size, its tier or its holds did."""

    def removed(self, entry: Entry[Any]) -> None:
        """The owner took it out."""

    def evicted(self, entry: Entry[Any], now: int, nbytes: int) -> None:
        """It was chosen and is gone; so many bytes are left."""


class MlxLm(Policy):
    """mlx-lm's rule: tiers balanced by count, first in first out in each, a fetch counts nothing.

    As `LRUPromptCache.CacheOrder.pop`; where the tier it names has nothing evictable, the next.
    """

    def bucket(self, entry: Entry[Any]) -> Hashable:
        """The tier."""
        return entry.tier

    def rank(self, entry: Entry[Any]) -> float:
        """The tick of its insertion."""
        return entry.inserted

    def choose(self, heads: Heads, now: int, counts: Sequence[int]) -> Hashable:
        """The first tier that holds as many as the next more persistent one."""
        last = len(counts) - 1
        named = (i for i in range(last) if counts[i] and counts[i] >= counts[i + 1])
        tier: int = next(named, last)
        return tier if tier in heads else min(heads, key=int)


class Recency(Policy):
    """Least recently used, but for system prompts and for the work that a byte saves."""

    def bucket(self, entry: Entry[Any]) -> Hashable:
        """All that `worth` compares but the age."""
        return entry.returned, entry.tier, density(entry.tokens, entry.nbytes)

    def choose(self, heads: Heads, now: int, counts: Sequence[int]) -> Hashable:
        """The bucket whose head is worth least."""

        def value(bucket: tuple[bool, int, int], head: Entry[Any]) -> float:
            returned, tier, density_bucket = bucket
            weight = self.weight(tier, returned=returned)
            return worth(now - head.last_used, weight, density_bucket)

        return _least(heads, value)

    def weight(self, tier: int, *, returned: bool) -> float:
        """The factor by which an entry stays longer for its kind."""
        return recency_weight(tier)


class PastUse(Recency):
    """Every tier counts, and what came back once is expected back again.

    How much longer a returned entry stays (`bias`) is learned from entries that come back too late:
    one that had returned shows that its kind needs room, a fresh one the opposite (as ARC does for
    its two lists; Megiddo and Modha, FAST'03). Both are weighed by the remembered bytes of that
    kind, so that the bias settles where a byte of either earns the same.
    """

    START, MOST, STEP = RETURNED_BIAS, 10.0, 12.0  # log2; measured, see docs/eviction.md

    def __init__(self) -> None:
        self._log_bias = self.START

    @property
    def bias(self) -> float:
        """The factor by which a returned entry stays longer than a fresh one, all else equal."""
        return math.exp2(self._log_bias)

    def weight(self, tier: int, *, returned: bool) -> float:
        """By tier, and more for what came back."""
        return history_weight(tier, self.bias if returned else 1.0)

    def came_back(self, ghost: Ghost, share: float, part: float) -> None:
        """Move the bias toward the kind that came back."""
        step = self.STEP * min(part, 1.0) * min(0.5 / share, 8.0)
        moved = self._log_bias + (step if ghost.returned else -step)
        self._log_bias = min(max(moved, 0.0), self.MOST)


def _least(heads: Heads, value: Callable[[Any, Entry[Any]], float]) -> Hashable:
    """The bucket whose head has the least value; of equals, the one stored first."""
    bucket: Hashable = min(heads, key=lambda b: (value(b, heads[b]), heads[b].serial))
    return bucket
