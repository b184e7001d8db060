"""The worth of keeping a span: the one comparison (law 11) by which memory and disk evict.

A pure function of stored fields. Measurements and alternatives: docs/eviction.md.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Final

TIERS: Final = ("assistant", "user", "system")  # from least to most persistent
TIER_FACTOR: Final = 4.0  # how much longer a span stays than its equal one tier below
# The rank from which on that holds whatever is known of a cache's use: system prompts are few.
PERSISTENT: Final = 2
# Log2 of how much longer a span stays that came back once, before anything is learned; measured.
RETURNED_BIAS: Final = 6.0


class StoredOrder(Enum):
    """An order in which stored spans are evicted, told from their rows alone."""

    RECENCY = "recency: system prompts stay longer"
    FOUND = "every tier counts, and what was found once stays longer"
    LRU = "least recently used"


def density(tokens: int, nbytes: int) -> int:
    """Work saved for each byte held, as a power of two, so that entries fall into few buckets."""
    return round(math.log2(max(tokens, 1) / max(nbytes, 1)))


def recency_weight(tier: int) -> float:
    """The weight of a tier where only recency is trusted: system prompts stay longer."""
    return TIER_FACTOR**tier if tier >= PERSISTENT else 1.0


def history_weight(tier: int, bias: float) -> float:
    """The weight of a tier, and by `bias` of having come back, where past use is trusted."""
    return TIER_FACTOR**tier * bias


def worth(age: int, weight: float, density_bucket: int) -> float:
    """The worth of keeping a span; the least is evicted.

    A chance to come back that falls with `age` (ticks since it was used), as in hyperbolic caching
    (Blankstein et al., ATC'17), times the work saved a byte (GreedyDual-Size, Cao and Irani '97).
    """
    return math.ldexp(weight / (age + 1), density_bucket)


def stored_weight(order: StoredOrder, tier: int, *, found: bool) -> float:
    """The weight of a stored span; of no use where the least recently used goes."""
    if order is StoredOrder.FOUND:
        return history_weight(tier, 2**RETURNED_BIAS if found else 1.0)
    return recency_weight(tier)
