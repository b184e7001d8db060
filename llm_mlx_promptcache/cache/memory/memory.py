"""Memory: the spans that a cache holds in memory, with their namespaces, leases and ages."""

from __future__ import annotations

from typing import NamedTuple

from .ages import Ages
from .leases import Loans
from .namespaces import MemoryNamespaces
from .span_tree import SpanTree


class Memory(NamedTuple):
    """A cache's spans, their namespaces, leases and times of use.

    Not locked, the owner is.
    """

    tree: SpanTree
    namespaces: MemoryNamespaces
    loans: Loans
    ages: Ages

    @classmethod
    def of(cls, tree: SpanTree) -> Memory:
        """The memory of a tree that is new."""
        return cls(tree, MemoryNamespaces(tree), Loans(), Ages())

    def begin(self) -> None:
        """Begin a new request: release the spans of leases that ended since the last one."""
        self.ages.note(self.tree.advance())
        for entry in self.loans.ended():
            self.tree.release(entry)
            self.tree.drop_moved_out(entry.item)
