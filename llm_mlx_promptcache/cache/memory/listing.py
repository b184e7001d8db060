"""The content of memory, to look at: paths, and the spans along them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..trie import Tokens
from .ages import Ages
from .span_tree import Held, SpanTree
from .spans import SpanNode, chain_of


class MemorySpan(NamedTuple):
    """A span in memory: the tokens [start, end) of its path; `idle` seconds since it was used."""

    start: int
    end: int
    tier: str
    bytes: int
    uses: int
    idle: float
    pinned: bool


class MemoryPath(NamedTuple):
    """A path in memory to a leaf; `spans` are along it, in order."""

    namespace: str
    tokens: Tokens[int]
    spans: list[MemorySpan]


class HeldModel(NamedTuple):
    """The spans in memory of a model, by the user's name for it ("" if none was given)."""

    model: str
    namespaces: tuple[str, ...]
    spans: int
    tokens: int
    bytes: int


def paths(tree: SpanTree, ages: Ages) -> list[MemoryPath]:
    """All paths in memory; a span that several paths share is on each of them."""
    found = []
    for node in tree.nodes():
        if not node.children:
            spans = [_span(passed, tree.tiers, ages) for passed in chain_of(node)]
            found.append(MemoryPath(str(node.model), node.path(), spans))
    return found


def models(tree: SpanTree, names: Mapping[str, str]) -> list[HeldModel]:
    """The spans of each model; the largest first."""
    held: dict[str, list[int]] = {}
    of: dict[str, set[str]] = {}
    for node in tree.nodes():
        name = names.get(str(node.model), "")
        of.setdefault(name, set()).add(str(node.model))
        sums = held.setdefault(name, [0, 0, 0])
        for index, amount in enumerate((1, len(node.tokens), node.value.entry.nbytes)):
            sums[index] += amount
    found = [HeldModel(name, tuple(sorted(of[name])), *sums) for name, sums in held.items()]
    return sorted(found, key=lambda one: -one.bytes)


def totals(tree: SpanTree) -> dict[str, Any]:
    """Spans, tokens and bytes, in all and by tier."""
    tiers = {tier: held._asdict() for tier, held in tree.held().items()}
    sums = {name: sum(held[name] for held in tiers.values()) for name in Held._fields}
    return {**sums, "tiers": tiers}


def _span(node: SpanNode, tiers: tuple[str, ...], ages: Ages) -> MemorySpan:
    entry = node.value.entry
    return MemorySpan(
        node.start,
        node.end,
        tiers[entry.tier],
        entry.nbytes,
        entry.uses,
        ages.seconds_since(entry.last_used),
        node.value.pinned,
    )
