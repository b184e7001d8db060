"""Memory: the spans that a cache holds in memory, and what is known of them beside."""

from __future__ import annotations

from typing import NamedTuple

from .ages import Ages
from .leases import Loans
from .namespaces import MemoryNamespaces
from .span_tree import SpanTree


class Memory(NamedTuple):
    """A cache's spans, their namespaces, what of them is lent, and when they were used.

    Not locked, the owner is.
    """

    tree: SpanTree
    namespaces: MemoryNamespaces
    loans: Loans
    ages: Ages

    @classmethod
    def of(cls, tree: SpanTree) -> Memory:
        """What belongs to a tree that is new."""
        return cls(tree, MemoryNamespaces(tree), Loans(), Ages())

    def begin(self) -> None:
        """A new request: leases that ended since the last one let go of their spans."""
        self.ages.note(self.tree.advance())
        for entry in self.loans.ended():
            self.tree.release(entry)
            self.tree.drop_moved_out(entry.item)
