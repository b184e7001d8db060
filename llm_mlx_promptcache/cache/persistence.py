"""From memory to the store: which spans are written, as what, and the thread that writes them.

Arrays belong to the engine's thread, so drafts are made there, as bytes of the host that share
the arrays' memory. Hashing and writing them is the writer's work, while the model decodes.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from . import layers as kinds
from .checkpoints import checkpoint_at, resumes
from .layers import Layout, Part
from .pieces import Piece, View
from .span_file import Draft, host_tensors
from .span_tree import SpanNode, parts_of
from .store import NullStore, Store, StoredSpan
from .trie import Tokens

_log = logging.getLogger(__name__)

# A file of its own costs as much at every later read of its path as the rows of about this many do
# (measured by `python benchmarks/disk.py`, kept in docs/disk.md): shorter ends of paths wait in
# memory, for what comes after them. At the end of a process all of it is written.
SHORT = 16
_MOST_USES = 64  # paths that wait to be counted as used, in one transaction
_MOST_WAITING = 256 << 20  # bytes that may wait to be written; then who brings more waits


class Use(NamedTuple):
    """A path that a request resumed."""

    namespace: str
    path: Tokens[int]


class Writer:
    """Writes drafts behind the caller's back, in order; a daemon that `wait` makes reliable."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._keeps = not isinstance(store, NullStore)
        self._uses: list[Use] = []
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._queue: deque[Draft | list[Use]] = deque()
        self._waiting = 0
        self._busy = False
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether something is on its way."""
        return self._process == os.getpid() and (bool(self._queue) or self._busy)

    def put(self, draft: Draft) -> None:
        """Write this when its turn comes; waits while too much is waiting."""
        if self._process != os.getpid():  # after a fork: the thread stayed with the parent
            self._start()
        with self._changed:
            self._changed.wait_for(lambda: self._waiting < _MOST_WAITING)
            self._waiting += draft.nbytes
            self._append(draft)

    def note_use(self, namespace: str, path: Tokens[int]) -> None:
        """A request resumed this path from memory: where it is stored as well, that is a use."""
        if self._keeps and len(path):
            self._uses.append(Use(namespace, path))
            if len(self._uses) >= _MOST_USES:
                self.count_uses()

    def count_uses(self) -> None:
        """Tell the store of all uses at once, after what was put before."""
        uses, self._uses = self._uses, []
        if self._process != os.getpid():
            self._start()
        if uses:
            with self._changed:
                self._append(uses)

    def _append(self, item: Draft | list[Use]) -> None:
        self._queue.append(item)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="span-writer", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def wait(self) -> None:
        """Return once all that was put is written."""
        if self._process == os.getpid():
            with self._changed:
                self._changed.wait_for(lambda: not self._queue and not self._busy)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._queue:
                    # A thread that waited for ever would keep every cache of a process alive.
                    self._thread = None
                    return
                item = self._queue.popleft()
                self._busy = True
            size = item.nbytes if isinstance(item, Draft) else 0
            try:
                if isinstance(item, Draft):
                    self._store.save(item)
                else:
                    self._count(item)
            except Exception as error:  # a store of somebody else's: it must not end the thread
                _log.warning("a span could not be stored: %s", error)
            del item
            with self._changed:
                self._busy = False
                self._waiting -= size
                self._changed.notify_all()

    def _count(self, uses: Sequence[Use]) -> None:
        """What is stored along these paths counts as used, with the checkpoints at their ends."""
        found: dict[str, StoredSpan] = {}
        for namespace, path in uses:
            spans, checkpoints = self._store.lookup(namespace, path)
            ends = [span for span in checkpoints if span.end == len(path)]
            found |= {span.stem: span for span in (*spans, *ends)}
        if found:
            self._store.used(list(found.values()))


def drafts(
    store: Store,
    layout: Layout,
    tiers: tuple[str, ...],
    node: SpanNode,
    busy: bool = False,
    short: bool = True,
) -> list[Draft]:
    """What the store lacks of the path to `node`, but for a `short` end if that is not wanted.

    `busy` says that what was drafted earlier may still be on its way there.
    """
    ids, namespace, chain = node.path(), str(node.model), _chain(node)
    coming = max((n.end for n in chain if n.value.saved), default=0) if busy else 0
    found = store.lookup(namespace, ids)
    held = max(found.end, coming)
    made: list[Draft] = []
    waiting: list[SpanNode] = []
    for number, passed in enumerate(chain):
        parts = parts_of(chain[: number + 1], passed.end)
        if passed.end > held:
            if all(piece is None for piece in passed.value.pieces):
                break
            waiting.append(passed)
            if passed is not node and _joins_next(layout, waiting, chain[number + 1]):
                continue
            if not short and passed is node and _is_short(layout, passed.end - held):
                break
            pieces, resumed = _pieces(layout, waiting, held), resumes(layout, parts, passed.end)
            rank = max(span.value.entry.tier for span in waiting)
            tensors = host_tensors(pieces)
            path = ids[: passed.end]
            made.append(Draft(namespace, layout, path, held, tiers[rank], tensors, resumed))
            held = passed.end
            waiting.clear()
        elif not kinds.cut_anywhere(layout) and not found.resumes_at(passed.end):
            extra = checkpoint_at(layout, parts, passed.end) if passed.end > coming else None
            if extra is not None:
                tier = tiers[passed.value.entry.tier]
                path, tensors = ids[: passed.end], host_tensors(extra)
                made.append(Draft(namespace, layout, path, passed.end, tier, tensors, True))
        passed.value.saved = True
    return made


def _joins_next(layout: Layout, waiting: list[SpanNode], following: SpanNode) -> bool:
    """Whether what waits is too short for a file of its own and can be part of the next one."""
    hollow = any(piece is None for piece in following.value.pieces)
    return _is_short(layout, waiting[-1].end - waiting[0].start) and not hollow


def _is_short(layout: Layout, length: int) -> bool:
    # Where layers can't be cut, the end of a short span is a checkpoint, which is worth a file.
    return length < SHORT and kinds.cut_anywhere(layout)


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
    return kinds.split(layout, pieces, last.end - first.start, held - first.start)[1]


def _chain(node: SpanNode) -> list[SpanNode]:
    chain = []
    current: SpanNode | None = node
    while current is not None and current.parent is not None:
        chain.append(current)
        current = current.parent
    return chain[::-1]
