"""A lookup of a prompt in memory, on its way to the store and in the store, with reasons."""

from __future__ import annotations

import time
from typing import Any, Final, NamedTuple

from . import device
from .disk.bandwidth import Bandwidth
from .disk.restore import Reading
from .disk.writer import Writer
from .explain import Why
from .insertion import Rows
from .layers import layout as layouts
from .layers.layout import Layout
from .memory.span_tree import SpanTree
from .memory.spans import SpanNode, parts_of
from .plan import Plan, make_plan
from .span import NOTHING, Query, StoredPath
from .store import Store
from .trie import Tokens

_MOST_ATTEMPTS: Final = 16  # of one fetch to read from the store, each ended by damage


class Walk(NamedTuple):
    """A query, and the spans in memory along it: they share its first `length` tokens."""

    query: Query
    nodes: list[SpanNode]
    length: int


class Wanted(NamedTuple):
    """A prompt, and how many of its tokens may come from what is kept at most."""

    namespace: str
    ids: Tokens[int]
    most: int


class Reach(NamedTuple):
    """The token where a prompt could resume, and the end of its known part."""

    resume_at: int
    matched: int


class Hit(NamedTuple):
    """The result of a lookup, with layers if anything was found, and with the obstacles met."""

    plan: Plan
    layers: list[Any] | None
    unreadable: bool = False
    slow: bool = False


MISS: Final = Hit(Plan([], 0, 0, 0), None)


class Lookup:
    """Prompts looked up for a cache; not locked, the owner is."""

    def __init__(
        self, tree: SpanTree, store: Store, writer: Writer, known: dict[str, Layout]
    ) -> None:
        self._tree = tree
        self._store = store
        self._writer = writer
        self._known = known
        self.bandwidth = Bandwidth()

    def layout(self, namespace: str) -> Layout | None:
        """The kinds of layer of a namespace, if anything of it is kept."""
        known = self._known.get(namespace)
        # The store is asked each time: it may have been wrong.
        return known if known is not None else self._store.layout(namespace)

    def walk(self, namespace: str, ids: Tokens[int]) -> Walk | None:
        """The spans along all but a prompt's last token (law 2); None for an unknown namespace."""
        layout = self.layout(namespace)
        if layout is None:
            return None
        nodes, length = self._tree.walk(namespace, ids[:-1])
        return Walk(Query(namespace, layout, ids[:-1]), nodes, length)

    def plan(self, walk: Walk, stored: StoredPath | None = None) -> Plan:
        """A plan for memory and store; the store is asked only if `stored` is not given."""
        query = walk.query
        # Spans that left memory for the disk are found on their way there: nobody waits for them.
        parts = parts_of(walk.nodes, walk.length)
        parts += self._writer.parts(query.namespace, query.ids, walk.length)
        length = parts[-1].end if parts else 0
        reached = layouts.resumable(query.layout, parts, length)
        if stored is None:
            missing = reached < len(query.ids)
            stored = self._store.lookup(query.namespace, query.ids) if missing else NOTHING
        return make_plan(self._store, query, parts, reached, stored)

    def find(self, walk: Walk, length: int, rows: Rows, prefill_speed: float | None) -> Hit:
        """The layers for as much of a prompt as is kept, with room for `length` tokens in all.

        Damaged spans are removed, so each attempt has fewer before it; if the fault is not a
        file's, the next one leaves the store out.
        """
        unreadable = slow = False
        stored: StoredPath | None = None
        attempts = 0
        while True:
            plan = self.plan(walk, stored)
            restore = plan.restore
            unreadable |= restore is not None and restore.state is not Reading.WHOLE
            if restore is not None and self.bandwidth.is_slower(
                restore.nbytes, plan.from_disk, prefill_speed, coded=restore.is_coded
            ):
                slow = True
                restore.close()
                plan = self.plan(walk, NOTHING)
            if not plan.resume_at:
                return Hit(plan, None, unreadable, slow)
            layers = self._layers(walk, plan, length, rows)
            if layers is not None:
                return Hit(plan, layers, unreadable, slow)
            unreadable = True
            attempts += 1
            removed = plan.restore is not None and plan.restore.state is Reading.REMOVED
            stored = None if removed and attempts < _MOST_ATTEMPTS else NOTHING

    def look(self, walk: Walk) -> Hit:
        """The reach of a prompt; nothing is read."""
        plan = self.plan(walk)
        if plan.restore is None:
            return Hit(plan, None)
        plan.restore.close()
        return Hit(plan, None, unreadable=plan.restore.state is not Reading.WHOLE)

    def _layers(self, walk: Walk, plan: Plan, length: int, rows: Rows) -> list[Any] | None:
        """The layers of a plan; None if a file turned out to be another."""
        layout, restore = walk.query.layout, plan.restore
        headroom = length - plan.resume_at
        moving: list[int] = []
        if rows is Rows.GIVE and not plan.stitched:
            moving = self._tree.exclusive(walk.nodes, min(plan.resume_at, plan.in_memory))
        started = time.monotonic()
        try:
            layers = None
            if restore is not None:
                layers = restore.layers(plan.resume_at, headroom)
            if layers is None:
                layers = layouts.join(layout, plan.parts, plan.resume_at, headroom, moving)
            if restore is None:
                return layers
            good = restore.verify()
            seconds = time.monotonic() - started
            self.bandwidth.measured(restore.nbytes, seconds, coded=restore.is_coded)
            return layers if good else None
        except Exception as error:
            device.note(error)
            self._tree.lose(layout, (walk.nodes[index] for index in moving))
            # No content of any file may raise out of a lookup (law 6).
            if restore is None or not restore.failed(error):
                raise
            return None
        finally:
            self._tree.resized(walk.nodes[index] for index in moving)
            if restore is not None:
                restore.close()

    def end(self, namespace: str, ids: Tokens[int]) -> SpanNode:
        """The span that ends after `ids`, split out when needed; ValueError if there is none."""
        layout = self.layout(namespace)
        nodes, length = self._tree.walk(namespace, ids)
        held = layouts.resumable(layout, parts_of(nodes, length), length) if layout else 0
        if layout is None or held < len(ids):
            raise ValueError(
                f"only {held} of these {len(ids)} tokens are in memory; insert them before pinning"
            )
        node = nodes[-1]
        return node if node.end == length else self._tree.split(layout, node, length)

    def explain(self, namespace: str, ids: Tokens[int]) -> Why:
        """The reason why a prompt would get no further, with regard to other namespaces."""
        walk = self.walk(namespace, ids)
        why = self.why(namespace, ids, MISS if walk is None else self.look(walk))
        if why.reason != "cold":
            return why
        others = {str(node.model) for node in self._tree.nodes()} - {namespace}
        longest = max((self._tree.walk(other, ids).length for other in others), default=0)
        return Why("namespace", longest) if longest else why

    def why(self, namespace: str, ids: Tokens[int], hit: Hit = MISS) -> Why:
        """The reason why a prompt got no further than `hit`."""
        count, matched = hit.plan.resume_at, hit.plan.matched
        if count == len(ids) - 1:
            return Why("whole")
        if hit.unreadable:
            return Why("unreadable", count)
        if hit.slow:
            return Why("slow", count)
        if self._store.unseen:
            return Why("locked", count)
        # Waiting spans that were tried are no reason: layers can't resume in them.
        if self._writer.holds(namespace, ids[:-1], max(count, matched)):
            return Why("writing", count)
        if count < matched:
            return Why("lent" if self._is_lent(namespace, ids, count) else "checkpoint", count)
        if self._tree.was_evicted(namespace, ids, count):
            return Why("evicted", count)
        if not count:
            return Why("cold")
        return Why("diverged", count, wanted=ids[count], stored=self._tree.next_ids(namespace, ids))

    def why_no_further(self, wanted: Wanted, hit: Hit) -> Why:
        """`why`, of a prompt that might get no further than `most`: whose doing it was."""
        namespace, ids, most = wanted
        if hit.plan.resume_at < most or most == len(ids) - 1:
            return self.why(namespace, ids[: most + 1], hit)
        walk = self.walk(namespace, ids)
        alone = MISS if walk is None else self.look(walk)
        if alone.plan.resume_at > most:
            return Why("ranks", most)
        return self.why(namespace, ids, alone)

    def _is_lent(self, namespace: str, ids: Tokens[int], count: int) -> bool:
        """True if rows after token `count` have moved out; nothing but a lease takes them."""
        layout = self._known.get(namespace, ())  # none where memory holds nothing
        nodes = [node for node in self._tree.walk(namespace, ids).nodes if node.end > count]
        pairs = [pair for node in nodes for pair in zip(layout, node.value.pieces, strict=True)]
        return any(kind.anywhere and piece is None for kind, piece in pairs)
