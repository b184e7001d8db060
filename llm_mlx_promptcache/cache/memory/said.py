"""What was said before in a namespace, as token ids: answers are drafted from it."""

from __future__ import annotations

import heapq
from array import array
from typing import NamedTuple

from ..trie import Tokens
from .span_tree import SpanTree
from .spans import SpanNode

_MOST_SPANS = 64


class Said(NamedTuple):
    """What stands `behind` a path, as it went on last; `texts` of other spans, the newest first."""

    behind: Tokens[int]
    texts: tuple[Tokens[int], ...]


NOTHING_SAID = Said(array("I"), ())


def said(tree: SpanTree, namespace: str, ids: Tokens[int], most: int) -> Said:
    """Of what is in memory, at most `most` tokens behind the path and as many elsewhere."""
    nodes, length = tree.walk(namespace, ids)
    behind = _behind(nodes[-1], length, most) if nodes and length == len(ids) else array("I")
    on_path = set(map(id, nodes))
    others = (node for node in tree.nodes_of(namespace) if id(node) not in on_path)
    texts = []
    for node in heapq.nlargest(_MOST_SPANS, others, key=lambda node: node.value.entry.last_used):
        texts.append(node.tokens[:most])
        most -= len(texts[-1])
        if not most:
            break
    return Said(behind, tuple(texts))


def _behind(node: SpanNode, at: int, most: int) -> Tokens[int]:
    found = node.tokens[at - node.start :]
    while node.children and len(found) < most:
        node = max(node.children.values(), key=lambda child: child.value.entry.last_used)
        found += node.tokens
    return found[:most]
