"""From memory to the store: the choice of paths to write, and what becomes of those left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from . import device
from .disk.writer import Writer
from .layers.layout import Layout
from .memory.span_tree import SpanTree
from .memory.spans import SpanNode, chain_of
from .new_spans import new_spans
from .proof import Proof
from .span import NewSpan
from .store import Store

_MOST_PREPARED: Final = 64 << 20  # bytes that are prepared before one wait for the device


class Saved(NamedTuple):
    """The number of spans given to the writer; True if some are left that it has no room for."""

    spans: int
    left: bool


class Persistence:
    """Chooses the spans that the writer writes for a cache; not locked, the owner is."""

    def __init__(
        self, store: Store, tree: SpanTree, writer: Writer, proof: Proof, known: dict[str, Layout]
    ) -> None:
        self._store = store
        self._tree = tree
        self._writer = writer
        self._proof = proof
        self._known = known

    def flush(self, *, short: bool) -> Saved:
        """Give the writer as many unsaved spans as it can take."""
        waiting, self._tree.unsaved = self._tree.unsaved, {}
        # Spans that wait already are not checked after each answer: a host has thousands of them.
        asked = {node: None for node in waiting if short or not node.value.waits}
        try:
            # Ends first: what they hang on is written with them.
            saved = self.save([*reversed(asked)], short=short)
        except BaseException:
            self._tree.unsaved = waiting
            raise
        self._tree.unsaved = {
            node: None
            for node in waiting
            if (node in self._tree.unsaved if node in asked else not node.value.saved)
        }
        self._writer.count_uses()
        return saved

    def leave(self, node: SpanNode) -> None:
        """Write a span that is evicted from memory first, if the store has not got it yet."""
        if node in self._tree.unsaved:
            if not self._writer.has_room:
                self._writer.tell_lost()
            self.save([node])

    def save(self, nodes: Sequence[SpanNode], *, short: bool = True) -> Saved:
        """Have the writer write the spans of these paths that the store lacks.

        If too much is waiting, a path stays unsaved: no answer waits for a slow disk.
        """
        spans: list[NewSpan] = []
        fresh: list[SpanNode] = []
        written, left = 0, False
        try:
            for node in nodes:
                if not self._writer.has_room:
                    self._tree.unsaved[node], left = None, True
                    continue
                fresh += [passed for passed in chain_of(node) if not passed.value.saved]
                spans += self._new_spans(node, [*self._writer.coming, *spans], short=short)
                if not node.value.saved:
                    self._tree.unsaved[node] = None
                if sum(span.nbytes for span in spans) > _MOST_PREPARED:
                    written += self._write(spans)
                    fresh.clear()
            written += self._write(spans)
        except BaseException:
            for node in fresh:
                node.value.saved = False
            raise
        return Saved(written, left)

    def _new_spans(self, node: SpanNode, coming: list[NewSpan], *, short: bool) -> list[NewSpan]:
        layout = self._known[str(node.model)]
        with device.work():
            return new_spans(self._store, layout, self._tree.tiers, node, coming, short=short)

    def _write(self, spans: list[NewSpan]) -> int:
        """Hand new spans to the writer, once the device has finished all that they are made of."""
        count = len(spans)
        if spans:
            self._proof.settle()
        for span in spans:
            self._writer.put(span)
        spans.clear()
        return count
