"""PromptTrie: a compressed radix tree over token ids, one node a span; no MLX here.

The terms of mlx-lm's `PromptTrie` (add, get, pop, pop_prefixes, search) with four moves for spans
(walk, split, extend, prune). Tokens are kept four bytes each and compared as arrays.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

V = TypeVar("V")
Tokens = array  # array("I"), four bytes a token

_ABSENT: Any = type("Absent", (), {"__repr__": lambda self: "<absent>"})()

# Tokens of a list converted before it is known whether anything stored starts like it.
_HEAD = 1024


def as_tokens(tokens: Iterable[int], name: str = "tokens") -> Tokens[int]:
    """Token ids as `array("I")`; ValueError naming the argument if one is no id."""
    if isinstance(tokens, array) and tokens.typecode == "I":
        return tokens
    if hasattr(tokens, "tolist"):
        tokens = tokens.tolist()
    ids = array("I")
    try:
        # The fastest way there is: 0.38 ms for 100,000 ids, where the constructor takes 0.57.
        ids.fromlist(tokens if isinstance(tokens, list) else list(tokens))
        return ids
    except (TypeError, OverflowError, ValueError) as error:
        reason = f"{name} must be integers from 0 to 2**32 - 1: {error}"
        raise ValueError(reason) from None


def common_prefix(a: Tokens[int], b: Tokens[int], a_from: int = 0, b_from: int = 0) -> int:
    """The number of tokens that `a[a_from:]` and `b[b_from:]` share from their starts."""
    limit = min(len(a) - a_from, len(b) - b_from)
    same, step = 0, 16
    # Growing slices are compared whole, in C; a Python loop over tokens would be 50 times slower.
    while same < limit:
        end = min(same + step, limit)
        if a[a_from + same : a_from + end] != b[b_from + same : b_from + end]:
            return _first_difference(a, b, a_from, b_from, same, end)
        same, step = end, step * 4
    return same


def _first_difference(
    a: Tokens[int], b: Tokens[int], a_from: int, b_from: int, low: int, high: int
) -> int:
    """The one place in [low, high) where equal prefixes part, by halving."""
    while high - low > 1:
        middle = (low + high) // 2
        if a[a_from + low : a_from + middle] == b[b_from + low : b_from + middle]:
            low = middle
        else:
            high = middle
    return low


class Node(Generic[V]):
    """One span: the tokens [start, end) of a path, and its owner's value for them."""

    __slots__ = ("__weakref__", "children", "model", "parent", "start", "tokens", "value")

    def __init__(self, model: Hashable, tokens: Tokens[int], parent: Node[V] | None) -> None:
        self.model = model
        self.tokens = tokens
        self.parent = parent
        self.start: int = parent.end if parent is not None else 0
        self.children: dict[int, Node[V]] = {}
        self.value: V = _ABSENT

    @property
    def end(self) -> int:
        """Position after this span's last token."""
        return self.start + len(self.tokens)

    @property
    def has_value(self) -> bool:
        """True if `value` was set."""
        return self.value is not _ABSENT

    def path(self) -> Tokens[int]:
        """All tokens from the root to this span's end."""
        runs: list[Tokens[int]] = []
        node: Node[V] | None = self
        while node is not None:
            runs.append(node.tokens)
            node = node.parent
        joined = array("I")
        for run in reversed(runs):
            joined.extend(run)
        return joined

    def __repr__(self) -> str:
        # Never the tokens: they are somebody's conversation (law 12).
        return f"Node([{self.start}, {self.end}), {len(self.children)} children)"


class Match(NamedTuple, Generic[V]):
    """Nodes that share tokens with a path, from the root's child on, and the number shared."""

    nodes: list[Node[V]]
    length: int


@dataclass(frozen=True, slots=True, repr=False)
class SearchResult(Generic[V]):
    """mlx-lm's `PromptTrieResult`: paths with a value that are near the tokens searched for.

    `exact` is the caller's own list. `longer` is looked up when it is read, which must be before
    the trie changes: it is as long as the stored path, and most callers need not know it.
    """

    model: Hashable
    exact: list[int] | None
    shorter: list[int] | None
    common_prefix: int
    _below: Node[V] | None = None

    @property
    def longer(self) -> list[int] | None:
        """The shortest path with a value that goes on behind all the tokens, or None."""
        nearest = _nearest_value(self._below) if self._below is not None else None
        return nearest.path().tolist() if nearest is not None else None


class PromptTrie(Generic[V]):
    """A forest of radix trees, one a model (or namespace); not locked, its owner is."""

    def __init__(self) -> None:
        self._roots: dict[Hashable, Node[V]] = {}

    # The four moves of spans.

    def walk(self, model: Hashable, tokens: Iterable[int]) -> Match[V]:
        """The nodes along `tokens`; the last may be shared in part only. Changes nothing.

        Reads no more of a list than a small multiple of the tokens found.
        """
        for ids in _growing(tokens):
            match = self._walk(model, ids)
            if match.length < len(ids):
                break
        return match

    def _walk(self, model: Hashable, ids: Tokens[int]) -> Match[V]:
        node, nodes, length = self._roots.get(model), [], 0
        while node is not None and length < len(ids):
            child = node.children.get(ids[length])
            if child is None:
                break
            same = common_prefix(child.tokens, ids, 0, length)
            nodes.append(child)
            length += same
            if same < len(child.tokens):
                break
            node = child
        return Match(nodes, length)

    def split(self, node: Node[V], at: int) -> Node[V]:
        """Cut a span at position `at` of its path; returns the new upper part, without a value."""
        cut = at - node.start
        if not 0 < cut < len(node.tokens):
            raise ValueError(f"at={at} is not inside the span [{node.start}, {node.end})")
        parent = node.parent
        assert parent is not None
        upper: Node[V] = Node(node.model, node.tokens[:cut], parent)
        parent.children[upper.tokens[0]] = upper
        node.tokens = node.tokens[cut:]
        node.start, node.parent = at, upper
        upper.children[node.tokens[0]] = node
        return upper

    def extend(self, parent: Node[V], tokens: Tokens[int]) -> Node[V]:
        """Hang a new span below `parent`, which has no child that starts with the same token."""
        if not len(tokens) or tokens[0] in parent.children:
            raise ValueError("tokens must start a branch that is not there yet")
        child = parent.children[tokens[0]] = Node(parent.model, tokens, parent)
        return child

    def prune(self, node: Node[V]) -> None:
        """Remove a leaf, and its root with the last one.

        Its value is removed with it, whoever still holds the node: values know their nodes, and a
        cycle would stay in memory until the collector comes.
        """
        parent = node.parent
        if node.children or parent is None:
            raise ValueError(f"{node!r} is not a leaf")
        del parent.children[node.tokens[0]]
        node.parent, node.value = None, _ABSENT
        if parent.parent is None and not parent.children:
            self._roots.pop(parent.model, None)

    def root(self, model: Hashable) -> Node[V]:
        """The empty path of a model, made when missing."""
        if model not in self._roots:
            self._roots[model] = Node(model, array("I"), None)
        return self._roots[model]

    def nodes(self) -> Iterator[Node[V]]:
        """Every span, parents before their children."""
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            if node.parent is not None:
                yield node
            stack.extend(node.children.values())

    def clear(self) -> None:
        """Forget everything at once, without waiting for the collector of cycles."""
        for node in [*self.nodes(), *self._roots.values()]:
            node.parent, node.value = None, _ABSENT
            node.children = {}
        self._roots.clear()

    # mlx-lm's terms: values at the ends of paths.

    def add(self, model: Hashable, tokens: Iterable[int], value: V) -> V | None:
        """Set the value of a path; returns the one it had, or None."""
        node = self.place(model, as_tokens(tokens))
        previous, node.value = node.value, value
        return None if previous is _ABSENT else previous

    def place(self, model: Hashable, ids: Tokens[int]) -> Node[V]:
        """The node that ends exactly at the end of `ids`, made or split out when missing."""
        nodes, length = self.walk(model, ids)
        if nodes and length < nodes[-1].end:
            nodes[-1] = self.split(nodes[-1], length)
        node = nodes[-1] if nodes else self.root(model)
        return node if length == len(ids) else self.extend(node, ids[length:])

    def get(self, model: Hashable, tokens: Iterable[int]) -> V:
        """The value of a path; KeyError if it has none."""
        return self._exact(model, tokens).value

    def pop(self, model: Hashable, tokens: Iterable[int]) -> V:
        """Take a path's value out; KeyError if it has none."""
        return self._take(self._exact(model, tokens))

    def pop_prefixes(self, model: Hashable, tokens: Iterable[int]) -> list[tuple[int, V]]:
        """Take out the values of all proper prefixes of a path, as (length, value)."""
        ids = as_tokens(tokens)
        nodes, length = self.walk(model, ids)
        root = self._roots.get(model)
        prefixes = [n for n in [root, *nodes] if n is not None and n.has_value]
        prefixes = [n for n in prefixes if n.end <= length and n.end < len(ids)]
        ends = [node.end for node in prefixes]  # taking one out may merge another away
        return [(end, self._take(node)) for end, node in zip(ends, prefixes, strict=True)]

    def search(self, model: Hashable, tokens: Iterable[int]) -> SearchResult[V]:
        """The nearest paths that have a value: exact, longest shorter, shortest longer."""
        path = tokens if isinstance(tokens, list) else as_tokens(tokens).tolist()
        nodes, length = self.walk(model, path)
        node = nodes[-1] if nodes else self._roots.get(model)
        if node is not None and node.has_value and node.end == length == len(path):
            return SearchResult(model, path, None, length)
        ends = (n.end for n in reversed(nodes) if n.has_value and n.end <= length)
        end = next(ends, 0)
        return SearchResult(model, None, path[:end] or None, length, node if length else None)

    def _exact(self, model: Hashable, tokens: Iterable[int]) -> Node[V]:
        ids = tokens if isinstance(tokens, list) else as_tokens(tokens)
        nodes, length = self.walk(model, ids)
        node = nodes[-1] if nodes else self._roots.get(model)
        if node is None or length != len(ids) or node.end != length or not node.has_value:
            raise KeyError(f"no value at this path of {len(ids)} tokens")
        return node

    def _take(self, node: Node[V]) -> V:
        value, node.value = node.value, _ABSENT
        while not node.children and not node.has_value and node.parent is not None:
            parent = node.parent
            self.prune(node)
            node = parent
        self._merge(node)
        return value

    def _merge(self, node: Node[V]) -> None:
        """Join a node that has no value with its only child, so that paths stay compressed."""
        if node.parent is None or node.has_value or len(node.children) != 1:
            return
        (child,) = node.children.values()
        child.tokens = node.tokens + child.tokens
        child.start, child.parent = node.start, node.parent
        node.parent.children[child.tokens[0]] = child

    # Flat, so that a path of a million tokens pickles without recursion.

    def __getstate__(self) -> list[tuple[Hashable, int, Tokens[int], list[V]]]:
        rows: list[tuple[Hashable, int, Tokens[int], list[V]]] = []
        index: dict[int, int] = {}
        for root in self._roots.values():
            stack = [root]
            while stack:
                node = stack.pop()
                index[id(node)] = len(rows)
                up = index[id(node.parent)] if node.parent is not None else -1
                kept = [node.value] if node.has_value else []
                rows.append((node.model, up, node.tokens, kept))
                stack.extend(node.children.values())
        return rows

    def __setstate__(self, rows: list[tuple[Hashable, int, Tokens[int], list[V]]]) -> None:
        self._roots = {}
        made: list[Node[V]] = []
        for model, up, tokens, kept in rows:
            node = self.root(model) if up < 0 else self.extend(made[up], tokens)
            if kept:
                node.value = kept[0]
            made.append(node)


def _growing(tokens: Iterable[int]) -> Iterator[Tokens[int]]:
    """Tokens as `array("I")`; of a long list first its head, then more, at last all of it."""
    if isinstance(tokens, list):
        size = _HEAD
        # Whole lists convert fastest, so a last piece that is not much longer isn't worth it.
        while size * 8 < len(tokens):
            yield as_tokens(tokens[:size])
            size *= 16
    yield as_tokens(tokens)


def _nearest_value(start: Node[V]) -> Node[V] | None:
    """The node with a value that ends soonest at or below `start`."""
    heap = [(start.end, 0, start)]
    pushed = 0
    while heap:
        _, _, node = heapq.heappop(heap)
        if node.has_value:
            return node
        for child in node.children.values():
            pushed += 1
            heapq.heappush(heap, (child.end, pushed, child))
    return None
