"""Between memory and the store: parts of a path read from files, spans written to them."""

from __future__ import annotations

from . import layers as kinds
from .disk import Store, StoredSpan
from .layers import Layout, Part
from .span_tree import SpanNode
from .trie import Tokens, common_prefix


def read_beyond(
    store: Store, namespace: str, ids: Tokens[int], stored: list[StoredSpan], reached: int
) -> tuple[list[Part], bool]:
    """A stored path's parts after token `reached`, and whether one of them could not be read."""
    parts: list[Part] = []
    for span in stored:
        if span.end <= reached:
            continue
        read = store.read(namespace, span)
        # The index finds, the tokens decide (law 5).
        if read is None or common_prefix(read.tokens, ids, 0, span.start) < span.end - span.start:
            return parts, True
        end = span.start + len(read.tokens)
        parts.append(Part(max(span.start, reached), span.end, end, read.pieces))
    return parts, False


def save_path(store: Store, layout: Layout, tiers: tuple[str, ...], node: SpanNode) -> int:
    """Write the path to `node` as far as the store lacks it; returns how many spans."""
    namespace, ids = str(node.model), node.path()
    stored = store.lookup(namespace, ids)
    held = stored[-1].end if stored else 0
    written = 0
    for passed in _chain(node):
        if passed.end > held:
            pieces = passed.value.pieces
            if held > passed.start:
                _, pieces = kinds.split(layout, pieces, len(passed.tokens), held - passed.start)
            tier = tiers[passed.value.entry.tier]
            start = max(held, passed.start)
            if all(piece is None for piece in pieces):
                break
            if not store.save(namespace, layout, ids[: passed.end], start, tier, pieces):
                break
            held, written = passed.end, written + 1
        passed.value.saved = True
    return written


def _chain(node: SpanNode) -> list[SpanNode]:
    chain = []
    current: SpanNode | None = node
    while current is not None and current.parent is not None:
        chain.append(current)
        current = current.parent
    return chain[::-1]
