"""Leases: layers that a request writes to, and the spans that stay in memory while it does."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

from ..explain import Why
from ..trie import Tokens, common_prefix
from .policies import Entry
from .spans import SpanNode


class Lease(NamedTuple):
    """Layers for one request, its own to write to (None on a miss); they cover `cached` tokens.

    Stored tokens agree with the prompt's up to `matched`: more than `cached` if the layers can't
    resume there, so that a checkpoint left there would serve the next prompt. `from_disk` of the
    covered tokens were not in memory.
    """

    layers: list[Any] | None
    cached: int
    why: Why
    matched: int = 0
    from_disk: int = 0


class _Loan(NamedTuple):
    namespace: str
    prefix: Tokens[int]
    layers: list[weakref.ref[Any]]


class Loans:
    """The leased layers, found by a lease's first layer: a lease ends when that layer dies."""

    def __init__(self) -> None:
        self._loans: weakref.WeakKeyDictionary[Any, _Loan] = weakref.WeakKeyDictionary()
        self._held: dict[int, Entry[SpanNode]] = {}
        self._numbers = count()
        # A layer can die inside any call, in any thread: its span's hold waits here meanwhile.
        # By number, since finalizers live as long as the layer: a cache may be gone before it.
        self._ended: deque[int] = deque()

    @property
    def nbytes(self) -> int:
        """Bytes of the layers that are out, with the unused ends of their buffers."""
        loans = list(self._loans.values())
        return sum(getattr(layer(), "nbytes", 0) for loan in loans for layer in loan.layers)

    def lend(
        self, namespace: str, prefix: Tokens[int], layers: list[Any], held: Entry[SpanNode] | None
    ) -> None:
        """Remember the tokens that the layers cover, and the span that is held for them."""
        watched = [weakref.ref(a) for a in layers if type(a).__weakrefoffset__]
        self._loans[layers[0]] = _Loan(namespace, prefix, watched)
        if held is not None:
            number = next(self._numbers)
            self._held[number] = held
            weakref.finalize(layers[0], self._ended.append, number).atexit = False

    def ended(self) -> Iterator[Entry[SpanNode]]:
        """The holds of leases that ended since the last call."""
        while self._ended:
            yield self._held.pop(self._ended.popleft())

    def check(self, namespace: str, ids: Tokens[int], layers: Sequence[Any]) -> None:
        """ValueError if leased layers come back under tokens that they don't cover."""
        loan = self._loans.get(layers[0])
        if loan is None:
            return
        shared = min(len(loan.prefix), len(ids))
        if loan.namespace != namespace or common_prefix(loan.prefix, ids) < shared:
            raise ValueError(
                f"tokens do not start like the {len(loan.prefix)} that these layers were leased for"
            )
