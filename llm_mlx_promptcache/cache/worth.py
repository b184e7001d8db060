"""The worth of keeping a span: the one comparison (law 11) by which memory and disk evict.

A pure function of stored fields. Measurements and alternatives: docs/eviction.md.
"""

from __future__ import annotations

import math
from typing import Final

TIERS: Final = ("assistant", "user", "system")  # from least to most persistent
TIER_FACTOR: Final = 4.0  # how much longer a span stays than its equal one tier below
# Log2 of how much longer a span stays that came back once, before anything is learned; measured.
RETURNED_BIAS: Final = 6.0


def density(tokens: int, nbytes: int) -> int:
    """Work saved for each byte held, as a power of two, so that entries fall into few buckets."""
    return round(math.log2(max(tokens, 1) / max(nbytes, 1)))


def worth(age: int, tier: int, density_bucket: int, *, returned: bool, bias: float) -> float:
    """The worth of keeping a span; the least is evicted.

    A chance to come back that falls with `age` (ticks since it was used), as in hyperbolic caching
    (Blankstein et al., ATC'17), times the work saved a byte (GreedyDual-Size, Cao and Irani '97).
    """
    prior = TIER_FACTOR**tier * (bias if returned else 1.0)
    return math.ldexp(prior / (age + 1), density_bucket)
