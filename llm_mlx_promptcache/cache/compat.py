"""mlx-lm's own interface over our core: `LRUPromptCache`, `PromptTrie` and `CacheOrder`.

Signatures and results are those of mlx-lm 0.32.2, for code that was written against it, such as its
server: `mlx_lm.server.LRUPromptCache = compat.LRUPromptCache`. Each class lists its differences.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from copy import copy
from dataclasses import replace
from itertools import islice, pairwise
from typing import Any

from . import trie
from .layers import layout as layouts
from .layers.layout import Layout
from .prompt_cache import PromptCache
from .trie import Match, Node, SearchResult, Tokens, as_tokens
from .worth import TIERS

__all__ = ["CacheOrder", "LRUPromptCache", "PromptTrie"]

_UNBOUNDED = 1 << 63
_IDS = 1 << 32
_MOST_TOLD = 100  # different reasons; a server runs for months

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
    """mlx-lm's `CacheOrder`: evicts the oldest of the first tier no smaller than the one after it.

    `remove` takes one step, however many there are. A path is there once: pushed again, it is the
    newest of its new tier.
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
        self.check(cache_type)
        self.remove(model, tokens)
        key = _key(model, tokens)
        self._lrus[cache_type][key] = (model, tokens)
        self._tier_of[key] = cache_type

    def check(self, cache_type: str) -> None:
        """Check a tier's name; ValueError if it is unknown."""
        if cache_type not in self._lrus:
            known = ", ".join(self._ordering)
            raise ValueError(f"cache_type is {cache_type!r}; it is one of {known}")

    def remove(self, model: Hashable, tokens: Any) -> None:
        """Take a path out, if it is there."""
        key = _key(model, tokens)
        tier = self._tier_of.pop(key, None)
        if tier is not None:
            del self._lrus[tier][key]

    def pop(self) -> tuple[Any, Any]:
        """Take out the next to be evicted, as (model, tokens); IndexError if there is none."""
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
    """Evicts the least recently used of the least persistent tier, however many there are of it."""

    def of(self, tier: str) -> list[tuple[Any, Any]]:
        """The entries of a tier, as (model, tokens)."""
        return list(self._lrus[tier].values())

    def touch(self, model: Hashable, tokens: Any) -> None:
        """Mark it as used: the newest of its tier."""
        key = _key(model, tokens)
        self._lrus[self._tier_of[key]].move_to_end(key)

    def pop(self, spare: object = None) -> tuple[Any, Any]:
        """Take out the next, as `CacheOrder.pop`; the path `spare` only if there is no other."""
        oldest = [item for lru in self._lrus.values() for item in islice(lru.values(), 2)]
        if not oldest:
            raise IndexError("pop from an empty CacheOrder")
        item = next((item for item in oldest if item[1] is not spare), oldest[0])
        self.remove(*item)
        return item


class LRUPromptCache:
    """mlx-lm's `LRUPromptCache` over `PromptCache`: rows that paths share are stored once.

    Differences from mlx-lm's, for callers who may rely on it:

    - `rest` is never empty, so the model always has a token to run, except for an empty prompt.
    - Inserted layers are copied and stay the caller's. Bytes are those of the tokens, each
    counted once, in the most persistent tier that needs it; buffers' unused ends are not counted.
    - Layers that do not hold what they should, or that can't be kept faithfully, are not kept;
    the log says why. Layers that hold fewer tokens than the path are kept for that many.
    - A path that extends others replaces those of its tier and of less persistent ones; if layers
    can't be cut, the nearest of them stays, since it alone can resume there.
    - The least recently inserted or fetched of the least persistent tier is evicted first, never
    the newest. One larger than `max_bytes` is cut to fit, or refused.

    Calls are safe from any thread. For pins, a store on disk and figures use `PromptCache`.
    """

    def __init__(self, max_size: int = 10, max_bytes: int = _UNBOUNDED) -> None:
        self.max_size = max_size
        self.max_bytes = max_bytes
        self._lock = threading.RLock()
        # Spans that a path needs are pinned there and no others stay: paths are evicted, not spans.
        self._cache = PromptCache(_UNBOUNDED)
        self._told: set[str] = set()
        self._forget_all()

    def _forget_all(self) -> None:
        self._cache.clear()
        self._paths: trie.PromptTrie[str] = trie.PromptTrie()  # a path's tier
        self._order = _LeastPersistentFirst()
        # A model may have layers of one kind for short prompts and of another for long ones.
        self._namespaces: dict[Hashable, dict[Layout, str]] = {}
        self._foreign_ids: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._order)

    @property
    def nbytes(self) -> int:
        """Bytes of all stored paths."""
        with self._lock:
            return self._cache._tree.nbytes

    def fetch_nearest_cache(
        self, model: Hashable, tokens: list[int]
    ) -> tuple[list[Any] | None, list[int]]:
        """Layers for the longest stored prefix, the caller's own to write to, and the rest."""
        with self._lock:
            ids = self._as_ids(tokens)
            found = {n: self._paths.walk(n, ids) for n in self._namespaces.get(model, {}).values()}
            for name, match in sorted(found.items(), key=lambda item: -item[1].length):
                lease = self._cache.fetch(name, ids) if match.length else None
                if lease is not None and lease.layers is not None:
                    self._touch(name, match)
                    # A lease ends with its first layer, and what is leased can't be evicted; here
                    # `max_bytes` must hold while requests run, and the layers are copies anyway.
                    lease.layers[0] = copy(lease.layers[0])
                    return lease.layers, tokens[lease.cached :]
            return None, tokens

    def insert_cache(
        self,
        model: Hashable,
        tokens: list[int],
        prompt_cache: list[Any],
        *,
        cache_type: str = "assistant",
    ) -> None:
        """Keep the layers' content for a path, under a tier; an empty path keeps nothing."""
        self._order.check(cache_type)
        with self._lock:
            ids = self._as_ids(tokens)
            if not len(ids):
                return
            try:
                self._insert(model, ids, prompt_cache, cache_type)
            except ValueError as error:  # in a server's loop raising would end all other answers
                self._tell(f"a prompt of a model is not kept: {error}")
            finally:
                self._sweep()

    def trim_to(self, *, n_sequences: int | None = None, n_bytes: int | None = None) -> None:
        """Drop paths until their number and bytes are within these limits."""
        most = _UNBOUNDED if n_sequences is None else max(0, n_sequences)
        with self._lock:
            self._shrink(most, _UNBOUNDED if n_bytes is None else max(0, n_bytes))

    def stats_by_type(self) -> dict[str, dict[str, int]]:
        """Paths and bytes of each tier; tokens that several need count for the most persistent."""
        with self._lock:
            seen: set[Any] = set()
            result = {}
            for tier in reversed(TIERS):
                paths = self._order.of(tier)
                nodes = {n for name, end in paths for n in self._spans(name, end.path())} - seen
                size = sum(node.value.entry.nbytes for node in nodes)
                result[tier] = {"n_sequences": len(paths), "n_bytes": size}
                seen |= nodes
            return {tier: result[tier] for tier in TIERS}

    def clear(self) -> None:
        """Forget everything, for instance when another model is loaded."""
        with self._lock:
            self._forget_all()

    def check(self) -> list[str]:
        """Everything that is wrong in memory, a line each."""
        with self._lock:
            return self._cache.check()

    # Paths in and out.

    def _insert(self, model: Hashable, ids: Tokens[int], layers: list[Any], tier: str) -> None:
        layout = layouts.layout_of(layers)
        ids = self._fitting(layout, ids, layers)
        names = self._namespaces.setdefault(model, {})
        if layout not in names:
            names[layout] = f"{sum(map(len, self._namespaces.values()))}"
        name = names[layout]
        ids = ids[: self._cache.insert(name, ids, layers, tier)]
        self._cache.pin(name, ids)
        node = self._paths.place(name, ids)
        node.value = tier
        self._order.push(name, node, tier)
        self._replace_prefixes(name, ids, tier, spare=not layouts.cut_anywhere(layout))
        self._shrink(self.max_size, self.max_bytes, node)

    def _fitting(self, layout: Layout, ids: Tokens[int], layers: list[Any]) -> Tokens[int]:
        """The tokens that may be kept, from the first on; ValueError if there are none."""
        at = layouts.position_of(layout, layers)
        at = len(ids) if at is None else at
        ids = ids[:at]
        if not len(ids):
            raise ValueError("layers hold no token yet")
        size = layouts.nbytes(layouts.cut(layout, layers, at, 0, len(ids)))
        if size <= self.max_bytes:
            return ids
        if layouts.cut_anywhere(layout) and (fit := len(ids) * self.max_bytes // size):
            return ids[:fit]
        raise ValueError(f"it takes {size} bytes, and max_bytes is {self.max_bytes}")

    def _replace_prefixes(self, name: str, ids: Tokens[int], tier: str, *, spare: bool) -> None:
        rank = TIERS.index(tier)
        nodes = self._paths.walk(name, ids).nodes
        ends = [n for n in nodes if n.has_value and n.end < len(ids)]
        ends = [node for node in ends if TIERS.index(node.value) <= rank]
        for node in ends[:-1] if spare else ends:
            self._order.remove(name, node)
            self._forget(name, node)

    def _forget(self, name: str, node: Node[str]) -> None:
        path = node.path()
        self._paths.pop(name, path)
        self._cache.unpin(name, path)

    def _shrink(self, n_sequences: int, n_bytes: int, newest: Node[str] | None = None) -> None:
        while len(self) and (len(self) > n_sequences or self.nbytes > n_bytes):
            self._forget(*self._order.pop(newest))
            self._sweep()

    def _sweep(self) -> None:
        """Drop everything that no path needs."""
        self._cache.trim_to(memory_bytes=0)

    def _touch(self, name: str, match: Match[str]) -> None:
        """Mark the paths along a fetch as used, and one of those that hold its end."""
        used = [node for node in match.nodes if node.has_value and node.end <= match.length]
        node = match.nodes[-1]
        while not node.has_value:
            node = next(reversed(node.children.values()))
        for end in dict.fromkeys([*used, node]):
            self._order.touch(name, end)

    def _spans(self, name: str, path: Tokens[int]) -> list[Any]:
        return list(self._cache._tree.walk(name, path).nodes)

    # Terms of mlx-lm's callers.

    def _as_ids(self, tokens: Iterable[int]) -> Tokens[int]:
        """Tokens as ours; the server's ids of images, which are negative, get one of their own."""
        try:
            return as_tokens(tokens)
        except ValueError:
            pass
        known = self._foreign_ids
        # From the top down, where no vocabulary reaches.
        return as_tokens(
            [
                known.setdefault(token, _IDS - 1 - len(known))
                if isinstance(token, int) and not 0 <= token < _IDS
                else token
                for token in tokens
            ]
        )

    def _tell(self, message: str) -> None:
        if message not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add(message)
            _log.warning(message)


def _key(model: Hashable, tokens: Any) -> Hashable:
    return (model, tuple(tokens) if isinstance(tokens, list) else tokens)
