"""CacheView: a cache as it is looked at; no hit, no miss and no use of anything is counted here."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from . import device
from .disk.writer import Writer
from .explain import Counters, Why
from .forgetting import Forgetter, Moment
from .layers import device_memory
from .lookup import MISS, Lookup, Reach
from .memory import listing
from .memory.budget import MemoryBudget
from .memory.leases import Lease
from .memory.memory import Memory
from .memory.said import NOTHING_SAID, Said, said_behind, said_elsewhere
from .memory.span_tree import SpanTree
from .store import Store
from .trie import Tokens, as_tokens


class CacheView:
    """The looks at a `PromptCache`, which makes these parts; safe from any thread."""

    _lock: threading.RLock
    _store: Store
    _saving: bool
    _tree: SpanTree
    _memory: Memory
    _counters: Counters
    _writer: Writer
    _forgetter: Forgetter
    _lookup: Lookup
    _budget: MemoryBudget

    def reach(self, namespace: str, tokens: Iterable[int], most: int) -> Reach:
        """The token at which a prompt could resume, at most `most`, and the end of the known part.

        No hit, no miss, no use, and nothing is read: several ranks find the place that all have.
        """
        ids = checked(tokens)
        with self._lock:
            walk = self._lookup.walk(namespace, ids[: most_of(ids, most) + 1])
            plan = MISS.plan if walk is None else self._lookup.look(walk).plan
            return Reach(plan.resume_at, plan.matched)

    def look(self, namespace: str, tokens: Iterable[int]) -> Lease:
        """The reach of a `fetch`, as a lease without layers; no hit, no miss and no use."""
        ids = checked(tokens)
        with self._lock:
            walk = self._lookup.walk(namespace, ids)
            hit = MISS if walk is None else self._lookup.look(walk)
            plan, why = hit.plan, self._lookup.why(namespace, ids, hit)
            return Lease(None, plan.resume_at, why, plan.matched, plan.from_disk)

    def holds(self, namespace: str, tokens: Iterable[int]) -> bool:
        """True if all of this path is in memory, or lent from there."""
        ids = as_tokens(tokens)
        with self._lock:
            return self._tree.walk(namespace, ids).length == len(ids)

    def said_behind(self, namespace: str, tokens: Iterable[int], most: int) -> Tokens[int]:
        """At most `most` token ids that are in memory behind these: no hit, and no use of any."""
        ids = checked(tokens)
        with self._lock:
            return said_behind(self._tree, namespace, ids, most)

    def said(self, namespace: str, tokens: Iterable[int], most: int) -> Said:
        """The token ids behind these tokens, in memory or the store, and of other spans in memory.

        At most `most` token ids of each, to draft answers from: no hit, and no use of anything.
        Nothing of a namespace that is being forgotten.
        """
        ids = checked(tokens)
        with self._lock:
            forgetting = self._forgetter.forgetting
            if forgetting.bars(namespace, forgetting.count):
                return NOTHING_SAID
            behind = said_behind(self._tree, namespace, ids, most)
            texts = said_elsewhere(self._tree, namespace, ids, most)
        return Said(behind or self._store.said_behind(namespace, ids, most), texts)

    def explain(self, namespace: str, tokens: Iterable[int]) -> Why:
        """The reason why a prompt would reuse no more; for callers who may see all namespaces.

        A lease never tells one namespace about another.
        """
        ids = checked(tokens)
        with self._lock:
            return self._lookup.explain(namespace, ids)

    def stats(self, elsewhere: int = 0) -> dict[str, Any]:
        """Hits, tokens reused, misses by reason; spans, tokens and bytes, in all and by tier.

        Of memory `bytes` are counted, span by span and in whole pages of the device, in so many
        `buffers`. `active` are MLX's bytes in this process, `pool` its freed buffers, and `held` is
        `active` without leases (`leased`) and what the caller knows to be `elsewhere`, weights
        above all. Bytes `waiting` to be written are held as well, some of them by counted spans.
        """
        stored = self._store.stats()
        with self._lock:
            leased, active = self._memory.loans.nbytes, device_memory.active()
            return {
                **asdict(self._counters),
                "evicted": dict(self._tree.evicted),
                "memory": {
                    **listing.totals(self._tree),
                    "buffers": self._tree.buffers,
                    "active": active,
                    "pool": device_memory.pooled(),
                    "held": max(0, active - elsewhere - leased),
                    "leased": leased,
                    "waiting": self._writer.waiting,
                    "budget": self._budget.limits.nbytes,
                },
                "disk": stored,
            }

    @property
    def nbytes(self) -> int:
        """Bytes of the spans in memory, and of the layers that are leased."""
        with self._lock:
            return self._tree.nbytes + self._memory.loans.nbytes

    def paths(self) -> list[listing.MemoryPath]:
        """All paths in memory, to look at; their tokens are conversations."""
        with self._lock:
            return listing.paths(self._tree, self._memory.ages)

    def models(self) -> list[listing.HeldModel]:
        """The spans in memory of each model; the largest first."""
        with self._lock:
            return listing.models(self._tree, self._memory.namespaces.names)

    def in_memory(self, namespace: str, tokens: Iterable[int]) -> int:
        """The number of these tokens, from the first on, that are in memory."""
        with self._lock:
            return self._tree.present(namespace, checked(tokens))

    def check(self) -> list[str]:
        """Faults in memory, a line each (law 3)."""
        with self._lock:
            self._memory.begin()
            return list(self._tree.check())

    @property
    def saves(self) -> bool:
        """True if there is a store to write to."""
        return self._saving

    def has_stored(self, model: str) -> bool:
        """True if the store has anything of a model, by its label."""
        return any(label == model for label, _, _ in self._store.by_model())

    def moment(self) -> Moment:
        """Now, for layers that are made now and come back with `insert_path`."""
        return Moment(device.failures(), self._forgetter.forgetting.count)


def most_of(ids: Tokens[int], most: int | None) -> int:
    """The number of a prompt's tokens that may come from the cache: never all of them (law 2)."""
    return len(ids) - 1 if most is None else max(0, min(most, len(ids) - 1))


def checked(tokens: Iterable[int]) -> Tokens[int]:
    """A path's token ids, at least one; ValueError."""
    ids = as_tokens(tokens)
    if not len(ids):
        raise ValueError("tokens is empty; a path has at least one token")
    return ids
