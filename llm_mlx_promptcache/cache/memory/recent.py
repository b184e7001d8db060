"""The order of last use of a namespace's spans, kept as they come and go, without a search.

Not locked, the owner is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator

from .spans import SpanNode


class RecentSpans:
    """All spans in memory, those of each namespace in the order of their last use."""

    def __init__(self) -> None:
        self._of: dict[Hashable, OrderedDict[SpanNode, None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def note(self, nodes: Iterable[SpanNode]) -> None:
        """Note that these are used now, or new; of one path the deepest last."""
        for node in nodes:
            held = self._of.setdefault(node.model, OrderedDict())
            held[node] = None
            held.move_to_end(node)

    def remove(self, node: SpanNode) -> None:
        """Remove a span that has left."""
        held = self._of[node.model]
        del held[node]
        if not held:
            del self._of[node.model]

    def newest(self, namespace: str) -> Iterator[SpanNode]:
        """The spans of a namespace, the last used first; a lazy iterator."""
        return reversed(self._of.get(namespace, {}))

    def clear(self) -> None:
        """Forget everything."""
        self._of.clear()
