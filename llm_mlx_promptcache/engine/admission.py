"""How many requests may hold layers at once: padding is what costs, not their number.

A batch holds as many tokens for each of its rows as the longest has, so a short request beside a
long one can double what the long one takes: it takes its steps apart. What an answer may come to is
no measure (nobody knows where it ends, and most end soon): what it holds soon is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from ..models.memory import total_memory

# More answers than this at once make each of them slow and gain little.
_MOST_REQUESTS = 32
# A batch may hold so many times the tokens of its rows.
_PADDING = 1.5
# A request is expected to hold so many tokens more than now, where it may have them.
_AHEAD = 512
# One that doesn't fit lets so many pass that came later and do; then it is its turn.
MOST_PASSED = 8
# Of the memory that nothing is in, what requests may take.
_SHARE = 0.5


class Admission:
    """What requests of one model may take; `limit` in bytes, by default half of what is free."""

    def __init__(self, limit: int | None = None) -> None:
        self._limit = _free_memory() * _SHARE if limit is None else limit
        self._per_token = 0.0
        self._seen = 0

    def measure(self, layers: Sequence[Any], tokens: int) -> None:
        """Learn what a token takes from layers that hold so many."""
        # Buffers grow by 256 rows, and states are as large for one token as for all.
        if tokens >= self._seen:
            held = sum(layer.nbytes for layer in layers)
            self._seen, self._per_token = tokens, held / max(1, -(-tokens // 256) * 256)

    def admits(self, tokens: int, others: Sequence[int]) -> bool:
        """Whether a request that is expected to hold so many tokens fits beside the others.

        One alone always does: nothing would be gained by refusing it.
        """
        if not others:
            return True
        if len(others) >= _MOST_REQUESTS:
            return False
        # Those that would be padded more step in batches of their own.
        held = min(padded(tokens, others), _PADDING * (tokens + sum(others)))
        return self.holds(held)

    def holds(self, tokens: float) -> bool:
        """Whether layers for so many tokens, padding included, keep to the limit."""
        return tokens * self._per_token <= self._limit


def expected(held: int, left: int) -> int:
    """How many tokens a request holds soon that holds so many, and wants at most `left` more."""
    return held + min(left, _AHEAD)


def padded(tokens: int, others: Sequence[int]) -> int:
    """The tokens that a batch of all of them holds room for."""
    return (len(others) + 1) * max(tokens, *others)


def fits_together(tokens: int, others: Sequence[int]) -> bool:
    """Whether a batch of them would hold little more than the requests themselves."""
    return padded(tokens, others) <= _PADDING * (tokens + sum(others))


def _free_memory() -> int:
    """Bytes that this process could still use: of the GPU's working set, or of the machine."""
    return max(0, total_memory() - mx.get_active_memory())
