"""mlx-lm's own interface over our core: `LRUPromptCache`, `PromptTrie` and `CacheOrder`.

Signatures and results are those of mlx-lm 0.32.2, for code that was written against it, such as
its server: `mlx_lm.server.LRUPromptCache = compat.LRUPromptCache`. Each class says what differs.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from . import layers as kinds
from . import trie
from .layers import Layout
from .prompt_cache import PromptCache
from .tiers import TIERS
from .trie import Node, SearchResult, Tokens, as_tokens

__all__ = ["CacheOrder", "LRUPromptCache", "PromptTrie"]

_UNBOUNDED = 1 << 63
_IDS = 1 << 32

_log = logging.getLogger(__name__)


class PromptTrie(trie.PromptTrie[Any]):
    """mlx-lm's `PromptTrie`; tokens are integers from 0 to 2**32 - 1, else it is a ValueError.

    A prefix of one token counts as `shorter`, and `pop_prefixes` of an unknown path is empty.
    """

    def search(self, model: Hashable, tokens: Iterable[int]) -> SearchResult[Any]:
        """The nearest paths that have a value; like mlx-lm's, 0 in common with an exact one."""
        found = super().search(model, tokens)
        return found if found.exact is None else replace(found, common_prefix=0)


class CacheOrder:
    """mlx-lm's `LRUPromptCache.CacheOrder`: the next to go is the oldest of the first tier that
    has as many as the tier after it. `remove` takes one step however many there are.

    A path is there once: pushed again, it is the newest of its new tier.
    """

    def __init__(self, ordering: Sequence[str] | None = None) -> None:
        self._ordering = list(TIERS if ordering is None else ordering)
        self._lrus: dict[str, OrderedDict[Hashable, tuple[Hashable, Any]]]
        self._lrus = {tier: OrderedDict() for tier in self._ordering}
        self._tier_of: dict[Hashable, str] = {}

    def __len__(self) -> int:
        return len(self._tier_of)

    def push(self, model: Hashable, tokens: Any, cache_type: str = "assistant") -> None:
        """Put a path in as the newest of its tier."""
        if cache_type not in self._lrus:
            known = ", ".join(self._ordering)
            raise ValueError(f"cache_type is {cache_type!r}; it is one of {known}")
        self.remove(model, tokens)
        key = _key(model, tokens)
        self._lrus[cache_type][key] = (model, tokens)
        self._tier_of[key] = cache_type

    def remove(self, model: Hashable, tokens: Any) -> None:
        """Take a path out, if it is there."""
        key = _key(model, tokens)
        tier = self._tier_of.pop(key, None)
        if tier is not None:
            del self._lrus[tier][key]

    def pop(self) -> tuple[Any, Any]:
        """Take out the next to go, as (model, tokens); IndexError where there is none."""
        lrus = [self._lrus[tier] for tier in self._ordering]
        for lru, above in pairwise(lrus):
            if lru and len(lru) >= len(above):
                return self._pop_oldest(lru)
        return self._pop_oldest(lrus[-1])

    def _pop_oldest(self, lru: OrderedDict[Hashable, tuple[Hashable, Any]]) -> tuple[Any, Any]:
        if not lru:
            raise IndexError("pop from an empty CacheOrder")
        key, item = lru.popitem(last=False)
        del self._tier_of[key]
        return item


class _LeastPersistentFirst(CacheOrder):
    """The least recently used of the least persistent tier goes; nothing protects it by number."""

    def touch(self, model: Hashable, tokens: Any) -> None:
        """It was used: the newest of its tier."""
        key = _key(model, tokens)
        self._lrus[self._tier_of[key]].move_to_end(key)

    def pop(self, spare: object = None) -> tuple[Any, Any]:
        """As `CacheOrder.pop`; the path `spare` only where there is no other."""
        items = (item for tier in self._ordering for item in self._lrus[tier].values())
        item = next((item for item in items if item[1] is not spare), (None, spare))
        if item[0] is None and not len(self):
            raise IndexError("pop from an empty CacheOrder")
        return item
