"""A span in memory, a node of the trie: its pieces of each layer, its place in the order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..layers.layout import PathPart
from ..layers.pieces import Piece
from ..trie import Node
from .policies import Entry

SpanNode = Node["Span"]


@dataclass(slots=True, eq=False)
class Span:
    """A node's value: a piece for each layer, its place in the order, pins, and its file.

    `waits`: it is unsaved, too short for a file, and left for the next span. `buffers` are the
    arrays of its pieces.
    """

    pieces: list[Piece | None]
    entry: Entry[SpanNode]
    pinned: bool = False
    saved: bool = False
    waits: bool = False
    buffers: int = 0


def chain_of(node: SpanNode) -> list[SpanNode]:
    """The spans from the root of a namespace to this one."""
    chain = []
    current: SpanNode | None = node
    while current is not None and current.parent is not None:
        chain.append(current)
        current = current.parent
    return chain[::-1]


def parts_of(nodes: Sequence[SpanNode], length: int) -> list[PathPart]:
    """Spans along a path as parts of it, up to token `length`."""
    return [PathPart(n.start, min(n.end, length), n.end, n.value.pieces) for n in nodes]


def is_moved_out(node: SpanNode) -> bool:
    """True if a span's rows have moved into a lease."""
    return all(piece is None for piece in node.value.pieces)
