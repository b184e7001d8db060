"""Proof that the device has finished its work before a change to spans stands.

docs/design.md, "A device that fails".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from . import device
from .memory.span_tree import SpanTree


class Proof:
    """Changes to the spans of a tree, one after the other; not locked, the owner is."""

    def __init__(self, tree: SpanTree) -> None:
        self._tree = tree
        self._since = 0  # how often the device had failed when the change began

    @contextmanager
    def of(self, since: int) -> Iterator[None]:
        """Run a change that began when the device had failed `since` times.

        If it fails again, spans return to their former content, or to nothing, and RuntimeError is
        raised.
        """
        self._since = since
        try:
            yield
            if self._tree.begin():
                self.settle()
            self._tree.proved()
        except BaseException:
            self._tree.withdraw()
            raise

    def settle(self) -> None:
        """Wait for the device; RuntimeError if it has failed since the change began."""
        device.settle()
        if device.failures() != self._since:
            raise RuntimeError("the device failed meanwhile, so nothing of this is kept")
