"""Admission of requests by the memory of their layers: padding costs, not their number.

A batch holds as many tokens for each of its rows as the longest has, so a short request beside a
long one can double what the long one takes: it steps apart. Requests are measured by what they will
hold soon, not by the longest answer they may give: nobody knows where an answer ends, and most end
early.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from ..cache.layers.device_memory import active, device_memory
from ..cache.sizes import format_size
from ..models.errors import PromptTooLargeError
from ..models.memory import shares

if TYPE_CHECKING:
    from ..models.kv_settings import KVSettings
    from ..models.needs import Needs

_log = logging.getLogger(__name__)

# The peak memory of one turn, as a multiple of its rows: docs/apple-silicon.md.
PEAK: Final = 1.25

# More answers at once than this slow each of them down and gain little.
_MOST_REQUESTS = 32
# A batch may hold this many times the tokens of its rows.
_PADDING = 1.5
# A request is expected to grow by this many tokens, as far as its limit allows.
_AHEAD = 512
# A request that doesn't fit lets this many later ones pass; then it is next.
MOST_PASSED = 8


class RequestMemory:
    """The memory that requests may take, in bytes; shared by all models of a process.

    It changes when a model is loaded. With `refuses`, a request that can't fit is not begun.
    """

    def __init__(self, limit: int, *, refuses: bool = False) -> None:
        self.limit = limit
        self.refuses = refuses

    @classmethod
    def of_machine(cls) -> RequestMemory:
        """The limit as this machine stands now, for callers that share nothing out."""
        memory = device_memory()
        return cls(shares(memory, active()).requests, refuses=memory.gpu)


class Admission:
    """The limit on one model's requests within `memory`; `needs` is what its layers take."""

    def __init__(self, memory: RequestMemory | None = None, needs: Needs | None = None) -> None:
        self._memory = RequestMemory.of_machine() if memory is None else memory
        self._needs = needs
        self._per_token = 0.0
        self._seen = 0
        self._told = False

    def measure(self, layers: Sequence[Any], tokens: int) -> None:
        """Learn the size of a token from layers that hold `tokens` of them."""
        # Buffers grow by 256 rows, and states are as large for one token as for all.
        if tokens >= self._seen:
            held = sum(layer.nbytes for layer in layers)
            self._seen, self._per_token = tokens, held / max(1, -(-tokens // 256) * 256)

    def admits(self, tokens: int, others: Sequence[int]) -> bool:
        """True if a request that is expected to hold `tokens` fits beside the others.

        One alone always fits: `check` has refused what would not.
        """
        if not others:
            return True
        if len(others) >= _MOST_REQUESTS:
            return False
        # Requests that would be padded more step in batches of their own.
        held = min(padded(tokens, others), _PADDING * (tokens + sum(others)))
        return self.holds(held)

    def check(self, tokens: int, limit: int, kv: KVSettings | None = None) -> None:
        """PromptTooLargeError where a prompt and the start of its answer can't fit, even alone.

        On a CPU, whose system can swap, this is one warning instead.
        """
        if self._needs is None:
            return
        most = self._needs.fitting(self._memory.limit / PEAK, kv) - expected(0, limit)
        if tokens <= most:
            return
        needed = int(self._needs.at(expected(tokens, limit), kv) * PEAK)
        told = (
            f"the prompt has {tokens} tokens, which take {format_size(needed)} of memory;"
            f" {format_size(self._memory.limit)} are left beside the model: {max(0, most)} tokens"
            " fit. Shorten the prompt, set fewer kv_bits, or use a smaller model"
        )
        if self._memory.refuses:
            raise PromptTooLargeError(told)
        if not self._told:
            self._told = True
            _log.warning("%s; this machine may swap now", told)

    def holds(self, tokens: float) -> bool:
        """True if layers for so many tokens, padding included, stay within the limit."""
        return tokens * self._per_token <= self._memory.limit


def expected(held: int, left: int) -> int:
    """The tokens that a request with `held` of them will hold soon, at most `left` more."""
    return held + min(left, _AHEAD)


def padded(tokens: int, others: Sequence[int]) -> int:
    """The tokens that a batch of all of them has room for."""
    return (len(others) + 1) * max(tokens, *others)


def fits_together(tokens: int, others: Sequence[int]) -> bool:
    """True if a batch of them would hold little more than the requests themselves."""
    return padded(tokens, others) <= _PADDING * (tokens + sum(others))
