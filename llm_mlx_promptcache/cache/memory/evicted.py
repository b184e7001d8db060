"""Evicted continuations of paths, to tell why a prompt missed."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from typing import Any, Final

from ..span import path_digest
from ..trie import Tokens

_MOST: Final = 65_536  # branches that are remembered


class EvictedBranches:
    """The beginnings of evicted spans, as digests: no token of theirs is kept."""

    def __init__(self) -> None:
        self._digests: OrderedDict[bytes, None] = OrderedDict()

    def add(self, namespace: Any, before: Tokens[int], first: int) -> None:
        """Remember that a span is gone that began with the id `first` behind the path `before`."""
        self._digests[_digest(namespace, before, first)] = None
        if len(self._digests) > _MOST:
            self._digests.popitem(last=False)

    def remove(self, namespace: Any, before: Tokens[int], first: int) -> None:
        """Forget a span that came back."""
        self._digests.pop(_digest(namespace, before, first), None)

    def has(self, namespace: Any, before: Tokens[int], first: int) -> bool:
        """True if such a span is remembered."""
        return _digest(namespace, before, first) in self._digests

    def clear(self) -> None:
        """Forget all of them."""
        self._digests.clear()


def _digest(namespace: Any, before: Tokens[int], first: int) -> bytes:
    return path_digest(namespace, before + array("I", [first]))
