"""The thinning of a path's checkpoints in memory, and the bytes that frees."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ..layers import layout as layouts
from ..layers.layout import Layout
from .span_tree import SpanTree
from .spans import SpanNode

_NEWEST: Final = 4  # checkpoints before a path's end that are never thinned


def thin(tree: SpanTree, layout: Layout, node: SpanNode) -> None:
    """Give up checkpoints on the way to `node` that later ones make unlikely to be needed.

    The newest stay, older ones at distances that double, so there are few on the longest path;
    those of the most persistent tier, of pinned spans and where paths part stay as well.
    """
    kept = spared = 0
    superseded = []
    current = node.parent
    while current is not None and current.parent is not None:
        if _is_plain(tree, current) and _is_checkpoint(layout, current):
            distance = node.end - current.end
            if kept >= _NEWEST and distance < 2 * spared:
                superseded.append(current)
            else:
                kept, spared = kept + 1, distance
        current = current.parent
    strip(tree, layout, superseded)


def strip(tree: SpanTree, layout: Layout, nodes: Iterable[SpanNode]) -> None:
    """Give up the checkpoints of these spans, except of pinned ones."""
    stripped = [node for node in nodes if _is_checkpoint(layout, node)]
    for node in stripped:
        node.value.pieces = layouts.thinned(layout, node.value.pieces)
    tree.resized(stripped)


def strippable(tree: SpanTree, layout: Layout, nodes: Iterable[SpanNode]) -> int:
    """Bytes that `strip` would free."""
    return sum(
        node.value.entry.nbytes - tree.size(layouts.thinned(layout, node.value.pieces))
        for node in nodes
        if not node.value.pinned
    )


def _is_checkpoint(layout: Layout, node: SpanNode) -> bool:
    pieces = node.value.pieces
    thinned = layouts.thinned(layout, pieces)
    differ = any(a is not b for a, b in zip(thinned, pieces, strict=True))
    return differ and not node.value.pinned


def _is_plain(tree: SpanTree, node: SpanNode) -> bool:
    dearest = node.value.entry.tier == len(tree.tiers) - 1 and len(tree.tiers) > 1
    return not (dearest or len(node.children) > 1 or node in tree.unsaved)
