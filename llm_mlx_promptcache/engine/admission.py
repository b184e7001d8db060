"""How many requests may hold layers at once: padding is what costs, not their number.

A batch holds as many tokens for each of its rows as the longest has, so a short request beside a
long one can double what the long one takes: it takes its steps apart. What an answer may come to is
no measure (nobody knows where it ends, and most end soon): what it holds soon is.
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

# What one turn of a conversation takes at most, times its rows: docs/apple-silicon.md.
PEAK: Final = 1.25

# More answers than this at once make each of them slow and gain little.
_MOST_REQUESTS = 32
# A batch may hold so many times the tokens of its rows.
_PADDING = 1.5
# A request is expected to hold so many tokens more than now, where it may have them.
_AHEAD = 512
# One that doesn't fit lets so many pass that came later and do; then it is its turn.
MOST_PASSED = 8


class RequestMemory:
    """What requests may take of this machine, in bytes; the same for all models of a process.

    It changes when a model is loaded. Where it `refuses`, what can't fit is not begun.
    """

    def __init__(self, limit: int, *, refuses: bool = False) -> None:
        self.limit = limit
        self.refuses = refuses

    @classmethod
    def of_machine(cls) -> RequestMemory:
        """What there is now, for who shares nothing out."""
        memory = device_memory()
        return cls(shares(memory, active()).requests, refuses=memory.gpu)


class Admission:
    """What requests of one model may take of `memory`; `needs` is what its layers take."""

    def __init__(self, memory: RequestMemory | None = None, needs: Needs | None = None) -> None:
        self._memory = RequestMemory.of_machine() if memory is None else memory
        self._needs = needs
        self._per_token = 0.0
        self._seen = 0
        self._told = False

    def measure(self, layers: Sequence[Any], tokens: int) -> None:
        """Learn what a token takes from layers that hold so many."""
        # Buffers grow by 256 rows, and states are as large for one token as for all.
        if tokens >= self._seen:
            held = sum(layer.nbytes for layer in layers)
            self._seen, self._per_token = tokens, held / max(1, -(-tokens // 256) * 256)

    def admits(self, tokens: int, others: Sequence[int]) -> bool:
        """Whether a request that is expected to hold so many tokens fits beside the others.

        One alone always does: what would not fit then was refused before it came here.
        """
        if not others:
            return True
        if len(others) >= _MOST_REQUESTS:
            return False
        # Those that would be padded more step in batches of their own.
        held = min(padded(tokens, others), _PADDING * (tokens + sum(others)))
        return self.holds(held)

    def check(self, tokens: int, limit: int, kv: KVSettings | None = None) -> None:
        """PromptTooLargeError where a prompt can't fit, even alone, with an answer's beginning.

        On a CPU, whose system swaps, that it may not is one warning.
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
        """Whether layers for so many tokens, padding included, keep to the limit."""
        return tokens * self._per_token <= self._memory.limit


def expected(held: int, left: int) -> int:
    """How many tokens a request holds soon that holds so many, and wants at most `left` more."""
    return held + min(left, _AHEAD)


def padded(tokens: int, others: Sequence[int]) -> int:
    """The tokens that a batch of all of them holds room for."""
    return (len(others) + 1) * max(tokens, *others)


def fits_together(tokens: int, others: Sequence[int]) -> bool:
    """Whether a batch of them would hold little more than the requests themselves."""
    return padded(tokens, others) <= _PADDING * (tokens + sum(others))
