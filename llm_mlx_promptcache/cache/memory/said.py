"""Earlier text in a namespace, as token ids: answers are drafted from it.

However many spans there are, only some are read.
"""

from __future__ import annotations

from array import array
from itertools import islice
from typing import Final, NamedTuple

from ..trie import Tokens
from .span_tree import SpanTree

_MOST_SPANS: Final = 64
_MOST_CHILDREN: Final = 16  # of one span, the newest


class Said(NamedTuple):
    """The tokens `behind` a path, as it went on last; `texts` of other spans, the newest first."""

    behind: Tokens[int]
    texts: tuple[Tokens[int], ...]


NOTHING_SAID = Said(array("I"), ())


def said_behind(tree: SpanTree, namespace: str, ids: Tokens[int], most: int) -> Tokens[int]:
    """At most `most` tokens that are in memory behind a path."""
    nodes, length = tree.walk(namespace, ids)
    if not nodes or length < len(ids):
        return array("I")
    node = nodes[-1]
    found = node.tokens[length - node.start :]
    for _ in range(_MOST_SPANS):
        newest = list(islice(reversed(node.children.values()), _MOST_CHILDREN))
        if not newest or len(found) >= most:
            break
        node = max(newest, key=lambda child: child.value.entry.last_used)
        found += node.tokens[:most]
    return found[:most]


def said_elsewhere(
    tree: SpanTree, namespace: str, ids: Tokens[int], most: int
) -> tuple[Tokens[int], ...]:
    """At most `most` tokens of spans that are not on this path, the most recently used ones."""
    on_path = set(map(id, tree.walk(namespace, ids).nodes))
    others = (node for node in tree.newest(namespace) if id(node) not in on_path)
    texts: list[Tokens[int]] = []
    for node in islice(others, _MOST_SPANS):
        texts.append(node.tokens[:most])
        most -= len(texts[-1])
        if not most:
            break
    return tuple(texts)
