"""From memory to the store: the choice of spans to write, and their drafts.

Arrays belong to the engine's thread, so drafts are made there, as bytes of the host that share the
arrays' memory. Hashing and writing them is the writer's work (`writer.py`), while the model
decodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from . import device
from .disk.span_file import host_tensors
from .disk.writer import Writer
from .layers import layout as layouts
from .layers.checkpoints import checkpoint_at, resumes
from .layers.layout import Layout, PathPart
from .layers.pieces import Piece, View
from .memory.span_tree import SpanTree
from .memory.spans import SpanNode, chain_of, is_moved_out, parts_of
from .proof import Proof
from .span import Draft, StoredPath
from .store import Store
from .trie import Tokens, common_prefix

# A file of its own costs as much at every later read of its path as rows of about this many tokens
# (measured by `python benchmarks/disk.py`, kept in docs/disk.md): shorter ends of paths wait in
# memory, for the next span. At the end of a process all of them are written.
SHORT = 16
_MOST_DRAFTED: Final = 64 << 20  # bytes that are prepared before one wait for the device


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
        drafts: list[Draft] = []
        fresh: list[SpanNode] = []
        written, left = 0, False
        try:
            for node in nodes:
                if not self._writer.has_room:
                    self._tree.unsaved[node], left = None, True
                    continue
                fresh += [passed for passed in chain_of(node) if not passed.value.saved]
                drafts += self._drafts(node, [*self._writer.coming, *drafts], short=short)
                if not node.value.saved:
                    self._tree.unsaved[node] = None
                if sum(draft.nbytes for draft in drafts) > _MOST_DRAFTED:
                    written += self._write(drafts)
                    fresh.clear()
            written += self._write(drafts)
        except BaseException:
            for node in fresh:
                node.value.saved = False
            raise
        return Saved(written, left)

    def _drafts(self, node: SpanNode, coming: list[Draft], *, short: bool) -> list[Draft]:
        layout = self._known[str(node.model)]
        with device.work():
            return drafts_of(self._store, layout, self._tree.tiers, node, coming, short=short)

    def _write(self, drafts: list[Draft]) -> int:
        """Hand drafts to the writer, once the device has finished all that they are made of."""
        count = len(drafts)
        if drafts:
            self._proof.settle()
        for draft in drafts:
            self._writer.put(draft)
        drafts.clear()
        return count


def drafts_of(
    store: Store,
    layout: Layout,
    tiers: tuple[str, ...],
    node: SpanNode,
    coming: Sequence[Draft] = (),
    *,
    short: bool = True,
) -> list[Draft]:
    """Drafts of the spans to `node` that the store lacks, without a `short` end if not wanted.

    `coming` are the drafts that the store gets before these; they were listed before it is asked.
    """
    ids, namespace, chain = node.path(), str(node.model), chain_of(node)
    cut = layouts.cut_anywhere(layout)
    ahead = _ahead(store.lookup(namespace, ids), coming, namespace, ids)
    held, resumable = ahead.end, ahead.resumable
    drafts: list[Draft] = []
    contents: list[Sequence[Piece | None]] = []
    waiting: list[SpanNode] = []
    parts = parts_of(chain, node.end)
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
            pieces = _pieces(layout, waiting, held)
            resumed = resumes(layout, parts[: number + 1], passed.end)
            tier = tiers[max(span.value.entry.tier for span in waiting)]
            path = ids[: passed.end]
            drafts.append(Draft(namespace, layout, path, held, tier, [], resumed, pieces))
            contents.append(pieces)
            held = passed.end
            waiting.clear()
        elif passed.end not in resumable and not cut:
            extra = checkpoint_at(layout, parts[: number + 1], passed.end)
            if extra is not None:
                tier = tiers[passed.value.entry.tier]
                path = ids[: passed.end]
                drafts.append(Draft(namespace, layout, path, passed.end, tier, [], resumes=True))
                contents.append(extra)
        passed.value.saved = True
    pairs = zip(drafts, host_tensors(*contents) if contents else (), strict=True)
    return [draft._replace(tensors=tensors) for draft, tensors in pairs]


class _Ahead(NamedTuple):
    """The token up to which a path will be stored, and where it can be resumed then."""

    end: int
    resumable: set[int]


def _ahead(found: StoredPath, coming: Sequence[Draft], namespace: str, ids: Tokens[int]) -> _Ahead:
    """The extent of a path in a store that has `found` this, once it has taken what is `coming`.

    A span that begins elsewhere than at the end of the store's path would be refused, so the gains
    from earlier drafts of any path are followed draft by draft.
    """
    end = found.end
    resumable = {span.end for span in (*found.spans, *found.checkpoints) if span.resumes}
    for draft in coming:
        last = len(draft.path) - 1
        first = min(draft.start, last)
        if draft.namespace != namespace or first >= len(ids) or draft.path[first] != ids[first]:
            continue  # so it is for most of them, which is soon seen
        shared = common_prefix(draft.path, ids)
        if draft.start == end:
            end = max(end, shared)
        if draft.resumes and last < shared <= end:
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
