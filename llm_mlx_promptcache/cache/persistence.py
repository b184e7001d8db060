"""From memory to the store: which spans are written, and as what.

Arrays belong to the engine's thread, so drafts are made there, as bytes of the host that share
the arrays' memory. Hashing and writing them is the writer's work (`writer.py`), while the model
decodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .disk.span_file import host_tensors
from .layers import layout as layouts
from .layers.checkpoints import checkpoint_at, resumes
from .layers.layout import Layout, Part
from .layers.pieces import Piece, View
from .memory.span_tree import SpanNode, parts_of
from .span import Draft, Found
from .store import Store
from .trie import Tokens, common_prefix

# A file of its own costs as much at every later read of its path as the rows of about this many do
# (measured by `python benchmarks/disk.py`, kept in docs/disk.md): shorter ends of paths wait in
# memory, for what comes after them. At the end of a process all of it is written.
SHORT = 16


def drafts(
    store: Store,
    layout: Layout,
    tiers: tuple[str, ...],
    node: SpanNode,
    coming: Sequence[Draft] = (),
    short: bool = True,
) -> list[Draft]:
    """What the store lacks of the path to `node`, but for a `short` end if that is not wanted.

    Before these it is given what is `coming`, which was listed before anything else is looked at.
    """
    ids, namespace, chain = node.path(), str(node.model), chain_of(node)
    cut = layouts.cut_anywhere(layout)
    ahead = _ahead(store.lookup(namespace, ids), coming, namespace, ids)
    held, resumable = ahead.end, ahead.resumable
    made: list[Draft] = []
    waiting: list[SpanNode] = []
    parts = parts_of(chain, node.end)
    for number, passed in enumerate(chain):
        if passed.end > held:
            if all(piece is None for piece in passed.value.pieces):
                break
            waiting.append(passed)
            if passed is not node and _joins_next(layout, waiting, chain[number + 1]):
                continue
            if not short and passed is node and _is_short(layout, passed.end - held):
                break
            pieces = _pieces(layout, waiting, held)
            resumed = resumes(layout, parts[: number + 1], passed.end)
            rank = max(span.value.entry.tier for span in waiting)
            tensors = host_tensors(pieces)
            path = ids[: passed.end]
            draft = Draft(namespace, layout, path, held, tiers[rank], tensors, resumed, pieces)
            made.append(draft)
            held = passed.end
            waiting.clear()
        elif passed.end not in resumable and not cut:
            extra = checkpoint_at(layout, parts[: number + 1], passed.end)
            if extra is not None:
                tier = tiers[passed.value.entry.tier]
                path, tensors = ids[: passed.end], host_tensors(extra)
                made.append(Draft(namespace, layout, path, passed.end, tier, tensors, True))
        passed.value.saved = True
    return made


class _Ahead(NamedTuple):
    """Up to which token a path will be stored, and where it can be resumed then."""

    end: int
    resumable: set[int]


def _ahead(found: Found, coming: Sequence[Draft], namespace: str, ids: Tokens[int]) -> _Ahead:
    """What a store that has `found` this holds of a path once it has taken what is `coming`.

    A span that begins elsewhere than where the store's path ends would be refused, so what earlier
    drafts of any path add to this one is followed draft by draft.
    """
    end = found.end
    resumable = {span.end for span in (*found.spans, *found.checkpoints) if span.resumes}
    for draft in coming:
        last = len(draft.path) - 1
        first = min(draft.start, last)
        if draft.namespace != namespace or first >= len(ids) or draft.path[first] != ids[first]:
            continue  # which is so of most, and soon seen
        shared = common_prefix(draft.path, ids)
        if draft.start == end:
            end = max(end, shared)
        if draft.resumes and last < shared <= end:
            resumable.add(shared)
    return _Ahead(end, resumable)


def _joins_next(layout: Layout, waiting: list[SpanNode], following: SpanNode) -> bool:
    """Whether what waits is too short for a file of its own and can be part of the next one."""
    moved_out = any(piece is None for piece in following.value.pieces)
    return _is_short(layout, waiting[-1].end - waiting[0].start) and not moved_out


def _is_short(layout: Layout, length: int) -> bool:
    # Where layers can't be cut, the end of a short span is a checkpoint, which is worth a file.
    return length < SHORT and layouts.cut_anywhere(layout)


def _pieces(layout: Layout, nodes: Sequence[SpanNode], held: int) -> list[Piece | None]:
    """The pieces of a run of spans as one, from token `held` on."""
    first, last = nodes[0], nodes[-1]
    pieces: list[Piece | None]
    if len(nodes) == 1:
        pieces = first.value.pieces
    else:
        # Shifted to the start, so that the layers joined for the purpose hold this run alone.
        parts = [
            Part(n.start - first.start, n.end - first.start, n.end - first.start, n.value.pieces)
            for n in nodes
        ]
        length = last.end - first.start
        pieces = []
        for index, kind in enumerate(layout):
            views = [View(p.start, p.end, p.span_end, p.pieces[index]) for p in parts]
            pieces.append(kind.cut(kind.join(views, length, 0), length, 0, length))
    if held <= first.start:
        return pieces
    return layouts.split(layout, pieces, last.end - first.start, held - first.start)[1]


def chain_of(node: SpanNode) -> list[SpanNode]:
    """The spans from the root of a namespace to this one."""
    chain = []
    current: SpanNode | None = node
    while current is not None and current.parent is not None:
        chain.append(current)
        current = current.parent
    return chain[::-1]
