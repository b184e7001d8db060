"""The budget of memory: the part of a path that fits, and the spans evicted for it (law 10)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..insertion import Insertion
from ..layers import layout as layouts
from ..layers.layout import Layout
from ..trie import Tokens
from .limits import Limits
from .span_tree import SpanTree
from .spans import SpanNode, is_moved_out
from .thinning import strip, strippable, thin


class MemoryBudget:
    """Spans within limits; each span to be evicted is passed to `leaving` first. Not locked."""

    def __init__(self, tree: SpanTree, limits: Limits, leaving: Callable[[SpanNode], None]) -> None:
        self._tree = tree
        self._leaving = leaving
        self.limits = limits

    def keep(self, namespace: str, layout: Layout, ids: Tokens[int], insertion: Insertion) -> int:
        """Put the part of a path that fits into memory; returns the number of its tokens."""
        ids = ids[: self._fitting(namespace, layout, ids, insertion)]
        if not len(ids):
            return 0
        node = self._tree.add(namespace, layout, ids, insertion)
        if not layouts.cut_anywhere(layout):
            thin(self._tree, layout, node)
        held = self._tree.hold(node)  # the newest path is not evicted
        self.evict(self.limits)
        self._tree.release(held)
        self.evict(self.limits)
        return len(ids)

    def evict(self, limits: Limits) -> None:
        """Evict spans until these limits are kept; pinned and leased spans stay."""
        self._tree.evict(limits, self._leaving)

    def _fitting(
        self, namespace: str, layout: Layout, ids: Tokens[int], insertion: Insertion
    ) -> int:
        """The number of tokens that can be kept within the whole budget."""
        most, size = self.limits.nbytes, self._tree.size
        cut = partial(layouts.cut, layout, insertion.layers, insertion.at)
        nodes, length = self._tree.walk(namespace, ids)
        new = cut(length, len(ids)) if length < len(ids) else []
        more = size(new)
        # Rows that moved out into these layers count again.
        moved_out = [node for node in nodes if is_moved_out(node)]
        held = sum(node.value.entry.nbytes for node in nodes)
        held += sum(size(cut(node.start, node.end)) for node in moved_out)
        if held + more <= most or not more:
            return len(ids)
        if layouts.cut_anywhere(layout):
            rounded = layouts.arrays(new) * (self._tree.page - 1)  # at most, up to whole pages
            return length + max(0, (most - held - rounded) * (len(ids) - length) // more)
        if held - strippable(self._tree, layout, nodes) + more > most:
            return length
        strip(self._tree, layout, nodes)  # the newest checkpoint alone
        return len(ids)
