"""CacheOrder: the next eviction, decided in one place by one comparison (law 11); no MLX here.

An owner (memory or disk) reports the events of its spans, and asks for a victim:

push     a span is stored            split    one span became two
use      a fetch found spans         touch    an insert passed over spans
hold     a lease or pin keeps one    release  and lets it go
remove   the owner took one out      pop      evict the next, and remember it

Only leaves that nobody holds are ever popped; when the last child is evicted, its parent may be.
Time is a count of requests (`advance`), never a clock. Not locked, the owner is.
The default policy, alternatives and figures: docs/eviction.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from ..worth import TIERS
from .guarded import Guarded
from .leaf_order import LeafOrder
from .policies import MlxLm, Policy

T = TypeVar("T")

POLICIES: Final[dict[str, Callable[[], Policy]]] = {
    "default": Guarded,
    "lru": Policy,
    "mlx-lm": MlxLm,
}


class CacheOrder(LeafOrder[T]):
    """Entries in the order in which they are evicted, under a policy by name or of one's own."""

    def __init__(self, tiers: Sequence[str] = TIERS, policy: str | Policy = "default") -> None:
        if isinstance(tiers, str) or not tiers or len(set(tiers)) != len(tiers):
            raise ValueError(f"tiers is {tiers!r}; it is a list of one or more different names")
        if isinstance(policy, str) and policy not in POLICIES:
            raise ValueError(f"policy is {policy!r}; it is one of {', '.join(POLICIES)}")
        super().__init__(tiers, POLICIES[policy]() if isinstance(policy, str) else policy)
