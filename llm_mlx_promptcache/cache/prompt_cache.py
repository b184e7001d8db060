"""PromptCache: prefixes of prompts in memory and in a store, shared, found by their tokens.

One radix tree a namespace; each of its spans keeps what the model's layers hold for its own
tokens and for no others, so a prefix that many conversations share is kept once.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from . import layers as kinds
from .disk import NullStore, Store
from .explain import Why
from .layer_kinds import Piece
from .layers import Layout, Part
from .sizes import parse_size
from .trie import Node, PromptTrie, Tokens, as_tokens, common_prefix

TIERS = ("assistant", "user", "system")


class Lease(NamedTuple):
    """Layers for one request, its own to write to (None on a miss); they cover `cached` tokens.

    Stored tokens agree with the prompt's up to `matched`: more than `cached` where the layers
    can't resume there, so that a checkpoint left there would serve the next prompt.
    """

    layers: list[Any] | None
    cached: int
    why: Why
    matched: int = 0


@dataclass(slots=True)
class Span:
    """What the cache keeps at a node of the trie: a piece a layer, and how dear it is."""

    pieces: list[Piece | None]
    tier: int
    nbytes: int
    last_use: int


class PromptCache:
    """Keeps what models computed for prefixes of prompts, and hands it to who needs it again.

    `memory_bytes` bounds the spans in memory; `disk` is a `Store`, or None for none. All calls
    are safe from several threads.
    """

    def __init__(self, memory_bytes: int | str = "4GB", disk: Store | None = None) -> None:
        self._max_bytes = parse_size(memory_bytes, "memory_bytes")
        self._store: Store = disk if disk is not None else NullStore()
        self._lock = threading.RLock()
        self._trie: PromptTrie[Span] = PromptTrie()
        self._layouts: dict[str, Layout] = {}
        self._nbytes = 0
        self._tick = 0
        self._unsaved: dict[Node[Span], None] = {}
        # Which tokens a lease's layers cover, found by its first layer; gone when they are.
        self._leased: weakref.WeakKeyDictionary[Any, tuple[str, Tokens[int]]]
        self._leased = weakref.WeakKeyDictionary()

    def fetch(self, namespace: str, tokens: Iterable[int], room: int = 0) -> Lease:
        """The longest stored prefix of `tokens`, never all of them, as layers ready to run.

        The layers have room for the rest of the prompt and `room` tokens more before they grow.
        """
        ids = _checked(tokens)
        with self._lock:
            self._tick += 1
            layout = self._layout(namespace)
            if layout is None:
                return Lease(None, 0, Why("cold"))
            parts, matched, unreadable = self._find(namespace, layout, ids[:-1])
            count = kinds.resumable(layout, parts, matched)
            why = _why(count, matched, len(ids) - 1, unreadable)
            if count == 0:
                return Lease(None, 0, why, matched)
            layers = kinds.join(layout, parts, count, len(ids) - count + room)
            self._leased[layers[0]] = (namespace, ids[:count])
            return Lease(layers, count, why, matched)

    def insert(
        self, namespace: str, tokens: Iterable[int], layers: Sequence[Any], tier: str = "assistant"
    ) -> int:
        """Keep what `layers` hold for `tokens`; returns for how many, at most what they cover.

        Only what is not stored yet is copied; the layers stay the caller's.
        """
        ids = _checked(tokens)
        if tier not in TIERS:
            raise ValueError(f"tier is {tier!r}; it is one of {', '.join(TIERS)}")
        layout = kinds.layout_of(layers)
        with self._lock:
            known = self._layout(namespace) or layout
            at = kinds.position_of(known, layers)
            at = len(ids) if at is None else at
            ids = ids[:at]
            if not len(ids):
                raise ValueError("layers hold no token yet; run the model before inserting them")
            self._check_lease(namespace, ids, layers)
            self._tick += 1
            self._layouts[namespace] = known
            node = self._place(namespace, ids, layers, at, TIERS.index(tier))
            self._evict(keep=node)
            return len(ids)

    def flush(self) -> int:
        """Write what the store does not have yet; returns how many spans were written."""
        with self._lock:
            waiting, self._unsaved = list(self._unsaved), {}
            return sum(self._save(node) for node in waiting if node.parent is not None)

    def stats(self) -> dict[str, Any]:
        """Spans, tokens and bytes in memory, and what the store says of itself."""
        with self._lock:
            nodes = list(self._trie.nodes())
            memory = {
                "spans": len(nodes),
                "tokens": sum(len(node.tokens) for node in nodes),
                "bytes": self._nbytes,
                "budget": self._max_bytes,
            }
            return {"memory": memory, "disk": self._store.stats()}

    def check(self) -> list[str]:
        """What is wrong with what is in memory, a line each (law 3)."""
        with self._lock:
            found = []
            for node in self._trie.nodes():
                if kinds.nbytes(node.value.pieces) != node.value.nbytes:
                    found.append(f"{node!r} holds other bytes than it says")
                if node.parent is None or node.parent.children.get(node.tokens[0]) is not node:
                    found.append(f"{node!r} is not its parent's child")
            total = sum(node.value.nbytes for node in self._trie.nodes())
            if total != self._nbytes:
                found.append(f"spans hold {total} bytes, the counter says {self._nbytes}")
            return found

    def clear(self) -> None:
        """Forget everything in memory; the store has its own `clear`."""
        with self._lock:
            self._trie.clear()
            self._unsaved.clear()
            self._layouts.clear()
            self._nbytes = 0

    def _layout(self, namespace: str) -> Layout | None:
        if namespace not in self._layouts:
            stored = self._store.layout(namespace)
            if stored is not None:
                self._layouts[namespace] = stored
        return self._layouts.get(namespace)

    def _find(
        self, namespace: str, layout: Layout, ids: Tokens[int]
    ) -> tuple[list[Part], int, bool]:
        """What memory and store hold along `ids`, up to which token, and if a read failed."""
        nodes, length = self._trie.walk(namespace, ids)
        parts = []
        for node in nodes:
            node.value.last_use = self._tick
            parts.append(Part(node.start, min(node.end, length), node.end, node.value.pieces))
        reached = kinds.resumable(layout, parts, length)
        if reached == len(ids):
            return parts, length, False
        stored = self._store.lookup(namespace, ids)
        if not stored or stored[-1].end <= reached:
            return parts, length, False
        parts = [
            part._replace(end=min(part.end, reached)) for part in parts if part.start < reached
        ]
        for span in stored:
            if span.end <= reached:
                continue
            read = self._store.read(namespace, span)
            used = span.end - span.start
            if read is None or common_prefix(read.tokens, ids, 0, span.start) < used:
                return parts, max(length, parts[-1].end if parts else 0), True
            end = span.start + len(read.tokens)
            parts.append(Part(max(span.start, reached), span.end, end, read.pieces))
        return parts, max(length, stored[-1].end), False

    def _check_lease(self, namespace: str, ids: Tokens[int], layers: Sequence[Any]) -> None:
        leased = self._leased.get(layers[0])
        if leased is None:
            return
        own_namespace, prefix = leased
        if own_namespace != namespace or common_prefix(prefix, ids) < min(len(prefix), len(ids)):
            raise ValueError(
                f"tokens do not start like the {len(prefix)} that these layers were leased for"
            )

    def _place(
        self, namespace: str, ids: Tokens[int], layers: Sequence[Any], at: int, tier: int
    ) -> Node[Span]:
        """The node at the end of `ids`, made when missing; all that pass get what they lacked."""
        layout = self._layouts[namespace]
        nodes, length = self._trie.walk(namespace, ids)
        inside = bool(nodes) and length < nodes[-1].end
        dearer = inside and tier > nodes[-1].value.tier
        if inside and (length < len(ids) or dearer or not kinds.cut_anywhere(layout)):
            nodes[-1] = self._split(nodes[-1], length, layout)
        for node in nodes:
            node.value.last_use = self._tick
            self._fill(node, layout, layers, at)
        node = nodes[-1] if nodes else self._trie.root(namespace)
        if length < len(ids):
            node = self._trie.extend(node, ids[length:])
            pieces = kinds.cut(layout, layers, at, length, len(ids))
            node.value = Span(pieces, tier, kinds.nbytes(pieces), self._tick)
            self._nbytes += node.value.nbytes
            self._unsaved[node] = None
        node.value.tier = max(node.value.tier, tier)
        return node

    def _fill(self, node: Node[Span], layout: Layout, layers: Sequence[Any], at: int) -> None:
        span = node.value
        if node.end <= at:
            filled = kinds.fill(layout, layers, at, node.start, node.end, span.pieces)
            if filled is not None:
                self._nbytes -= span.nbytes
                span.pieces, span.nbytes = filled, kinds.nbytes(filled)
                self._nbytes += span.nbytes

    def _split(self, node: Node[Span], at: int, layout: Layout) -> Node[Span]:
        span = node.value
        left, right = kinds.split(layout, span.pieces, len(node.tokens), at - node.start)
        upper = self._trie.split(node, at)
        upper.value = Span(left, span.tier, kinds.nbytes(left), span.last_use)
        self._nbytes += kinds.nbytes(left) + kinds.nbytes(right) - span.nbytes
        span.pieces, span.nbytes = right, kinds.nbytes(right)
        if node in self._unsaved:  # the store needs parents before children
            del self._unsaved[node]
            self._unsaved |= {upper: None, node: None}
        return upper

    def _evict(self, keep: Node[Span]) -> None:
        """Leaves go, the least persistent and least recently used first, down to the budget."""
        while self._nbytes > self._max_bytes:
            leaves = (node for node in self._trie.nodes() if not node.children)
            victim = min(leaves, key=lambda n: (n is keep, n.value.tier, n.value.last_use))
            if victim in self._unsaved:
                del self._unsaved[victim]
                self._save(victim)
            self._nbytes -= victim.value.nbytes
            self._trie.prune(victim)

    def _save(self, node: Node[Span]) -> int:
        """Write a node's path to the store as far as it is not there; returns spans written."""
        if isinstance(self._store, NullStore):
            return 0
        layout, ids = self._layouts[str(node.model)], node.path()
        stored = self._store.lookup(str(node.model), ids)
        held = stored[-1].end if stored else 0
        written = 0
        for passed in _chain(node):
            if passed.end <= held:
                continue
            start = max(held, passed.start)
            pieces = passed.value.pieces
            if start > passed.start:
                length = len(passed.tokens)
                _, pieces = kinds.split(layout, pieces, length, start - passed.start)
            tier = TIERS[passed.value.tier]
            path = ids[: passed.end]
            if not self._store.save(str(node.model), layout, path, start, tier, pieces):
                break
            held, written = passed.end, written + 1
        return written


def _why(count: int, matched: int, wanted: int, unreadable: bool) -> Why:
    if count == wanted:
        return Why("whole")
    if unreadable:
        return Why("unreadable", count)
    if count < matched:
        return Why("checkpoint", count)
    return Why("diverged", count) if count else Why("cold")


def _chain(node: Node[Span]) -> list[Node[Span]]:
    chain = []
    current: Node[Span] | None = node
    while current is not None and current.parent is not None:
        chain.append(current)
        current = current.parent
    return chain[::-1]


def _checked(tokens: Iterable[int]) -> Tokens[int]:
    ids = as_tokens(tokens)
    if not len(ids):
        raise ValueError("tokens is empty; a path has at least one token")
    return ids
