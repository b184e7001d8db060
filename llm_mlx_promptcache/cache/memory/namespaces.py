"""Namespaces in memory: their layouts, their models, and the spans dropped with them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from ..layers.layout import Layout
from .span_tree import SpanTree

_LEAST_NAMED: Final = 8  # characters of a namespace that may stand for it, as in the store


class MemoryNamespaces:
    """The namespaces that have spans in a tree, or a name. Not locked, the owner is."""

    def __init__(self, tree: SpanTree) -> None:
        self._tree = tree
        self.layouts: dict[str, Layout] = {}
        self.names: dict[str, str] = {}  # users' names for their models

    def of_model(self, model: str | None) -> set[str] | None:
        """The namespaces of a model, by its name or by their beginning; None for all."""
        if model is None:
            return None
        known = {*self.names, *self.layouts}
        start = len(model) >= _LEAST_NAMED
        return {
            name
            for name in known
            if self.names.get(name) == model or (start and name.startswith(model))
        }

    def drop(self, names: Collection[str] | None) -> int:
        """Drop all spans of these namespaces, or of all, from memory; returns the bytes freed."""
        freed = self._tree.nbytes
        if names is None:
            self._tree.clear()
            self.layouts.clear()
            self.names.clear()
            return freed
        self._tree.drop(lambda node: node.model in names)
        for name in names:
            self.layouts.pop(name, None)
        return freed - self._tree.nbytes

    def drop_unused(self, names: Collection[str] | None, last: int) -> int:
        """Drop spans used at tick `last` or before and never since; returns the bytes freed.

        Pinned and leased spans stay, and those that a younger one hangs on.
        """
        return self._tree.drop(
            lambda node: (
                (names is None or node.model in names)
                and node.value.entry.last_used <= last
                and not (node.value.pinned or node.value.entry.holds)
            )
        )
