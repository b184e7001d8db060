"""New spans of the store: those of a path in memory that it lacks, as they are written.

Arrays belong to the engine's thread, so new spans are made there, as bytes of the host that share
the arrays' memory. Hashing and writing them is the writer's work (`writer.py`), while the model
decodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import NamedTuple

from .disk.restore import Restore
from .disk.span_file import host_tensors
from .layers import layout as layouts
from .layers.checkpoints import checkpoint_at, resumes
from .layers.ends import reach_back
from .layers.layout import Layout, PathPart
from .layers.pieces import Piece, View
from .memory.spans import SpanNode, chain_of, is_moved_out, parts_of
from .span import NewSpan, Query, StoredPath
from .store import Store
from .trie import Tokens, common_prefix

# A file of its own costs as much at every later read of its path as rows of about this many tokens
# (measured by `python benchmarks/disk.py`, kept in docs/disk.md): shorter ends of paths wait in
# memory, for the next span. At the end of a process all of them are written.
SHORT = 16


def new_spans(
    store: Store,
    layout: Layout,
    tiers: tuple[str, ...],
    node: SpanNode,
    coming: Sequence[NewSpan] = (),
    *,
    short: bool = True,
) -> list[NewSpan]:
    """The spans to `node` that the store lacks, without a `short` end if not wanted.

    `coming` are those that the store gets before these; they were listed before it is asked.
    """
    chain = chain_of(node)
    path = _Path(str(node.model), layout, tiers, node.path(), parts_of(chain, node.end))
    cut = layouts.cut_anywhere(layout)
    query = Query(path.namespace, layout, path.ids)
    found = _stored(store, query, {passed.end for passed in chain})
    ahead = _ahead(found, coming, path.namespace, path.ids)
    held = ahead.end
    made: list[_NewContent] = []
    waiting: list[SpanNode] = []
    for number, passed in enumerate(chain):
        if passed.end > held:
            if _lacks_rows(layout, passed):
                break
            waiting.append(passed)
            if passed is not node and _joins_next(layout, waiting, chain[number + 1]):
                continue
            if not short and passed is node and _is_short(layout, passed.end - held):
                passed.value.waits = True
                break
            made.append(path.rows(number, waiting, held))
            held = passed.end
            waiting.clear()
        elif passed.end not in ahead.resumable and not cut:
            made += path.checkpoint(number, passed)
        passed.value.saved = True
    tensors = host_tensors(*(one.pieces for one in made)) if made else ()
    return [one.span._replace(tensors=own) for one, own in zip(made, tensors, strict=True)]


class _NewContent(NamedTuple):
    """A new span without its tensors, and the pieces that these are made of."""

    span: NewSpan
    pieces: Sequence[Piece | None]


@dataclass(frozen=True)
class _Path:
    """A path in memory, whose `parts` are what the nodes on it hold, from the root on."""

    namespace: str
    layout: Layout
    tiers: tuple[str, ...]
    ids: Tokens[int]
    parts: list[PathPart]

    def rows(self, number: int, nodes: Sequence[SpanNode], held: int) -> _NewContent:
        """A run of nodes as one span, from token `held` to the end of part `number`."""
        end = nodes[-1].end
        tier = self.tiers[max(node.value.entry.tier for node in nodes)]
        pieces = _pieces(self.layout, nodes, held)
        resumed = resumes(self.layout, self.parts[: number + 1], end)
        span = NewSpan(self.namespace, self.layout, self.ids[:end], held, tier, [], resumed, pieces)
        return _NewContent(span, pieces)

    def checkpoint(self, number: int, node: SpanNode) -> list[_NewContent]:
        """The checkpoint at the end of a node, which is part `number`; empty if memory has none."""
        extra = checkpoint_at(self.layout, self.parts[: number + 1], node.end)
        if extra is None:
            return []
        tier = self.tiers[node.value.entry.tier]
        path = self.ids[: node.end]
        span = NewSpan(self.namespace, self.layout, path, node.end, tier, [], resumes=True)
        return [_NewContent(span, extra)]


def _stored(store: Store, query: Query, ends: AbstractSet[int]) -> StoredPath:
    """The stored part of a path; at these `ends` it is said to resume only where it still does.

    A span says so as it was written, and one within its windows' reach may have lost its own since.
    """
    found = store.lookup(query.namespace, query.ids)
    layout = query.layout
    doubtful = _behind_holes(found, reach_back(layout)) & ends
    if not doubtful:
        return found
    restore = Restore(store, query)
    try:
        restore.open([span for span in found.spans if span.end <= max(doubtful)], 0)
        reached = {end: layouts.resumable(layout, restore.parts, end) for end in doubtful}
    finally:
        restore.close()
    spans = [
        span._replace(resumes=span.resumes and reached.get(span.end) in (None, span.end))
        for span in found.spans
    ]
    return found._replace(spans=spans)


def _behind_holes(found: StoredPath, reach: int) -> set[int]:
    """The ends of spans so near behind one that does not resume that windows reach back to it."""
    checkpoints = {checkpoint.end for checkpoint in found.checkpoints}
    ends = set()
    hole = 0
    for span in found.spans:
        near = hole > max(0, span.end - reach)
        if not span.resumes and span.end not in checkpoints:
            hole = span.end
        elif near and not any(hole <= at <= span.end for at in checkpoints):
            ends.add(span.end)
    return ends


class _Ahead(NamedTuple):
    """The token up to which a path will be stored, and where it can be resumed then."""

    end: int
    resumable: set[int]


def _ahead(
    found: StoredPath, coming: Sequence[NewSpan], namespace: str, ids: Tokens[int]
) -> _Ahead:
    """The extent of a path in a store that has `found` this, once it has taken what is `coming`.

    A span that begins elsewhere than at the end of the store's path would be refused, so the gains
    from earlier ones of any path are followed one by one.
    """
    end = found.end
    resumable = {span.end for span in (*found.spans, *found.checkpoints) if span.resumes}
    for span in coming:
        last = len(span.path) - 1
        first = min(span.start, last)
        if span.namespace != namespace or first >= len(ids) or span.path[first] != ids[first]:
            continue  # so it is for most of them, which is soon seen
        shared = common_prefix(span.path, ids)
        if span.start == end:
            end = max(end, shared)
        if span.resumes and last < shared <= end:
            resumable.add(shared)
    return _Ahead(end, resumable)


def _lacks_rows(layout: Layout, node: SpanNode) -> bool:
    """True if a span has nothing to write, or its rows are with a lease and only states are left.

    A file without them would hold the path up for good: no other one takes its place.
    """
    # Layers of one kind are cut together, so the first of each kind speaks for them.
    firsts = dict(reversed([*zip(layout, node.value.pieces, strict=True)]))
    away = any(kind.anywhere and piece is None for kind, piece in firsts.items())
    return away or is_moved_out(node)


def _joins_next(layout: Layout, waiting: list[SpanNode], following: SpanNode) -> bool:
    """True if the waiting spans are too short for a file of their own and can join the next one."""
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
            PathPart(
                n.start - first.start, n.end - first.start, n.end - first.start, n.value.pieces
            )
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
