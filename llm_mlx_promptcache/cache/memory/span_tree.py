"""SpanTree: the spans in memory, one radix tree a namespace, and the order of their eviction.

Trie and order change together here and nowhere else, so that each span has exactly one place in
each and the bytes of all spans are the order's count (law 3). Not locked, the owner is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from .. import device
from ..insertion import Insertion, Rows
from ..layers import device_memory
from ..layers import layout as layouts
from ..layers.layout import Layout, SpanPieces
from ..layers.pieces import Piece
from ..span import path_digest
from ..trie import Match, PromptTrie, Tokens
from .evicted import EvictedBranches
from .limits import Limits
from .order import CacheOrder
from .policies import Entry, Policy
from .recent import RecentSpans
from .spans import Span, SpanNode, is_moved_out


class Held(NamedTuple):
    """Spans, tokens and bytes of one tier."""

    spans: int
    tokens: int
    bytes: int


class SpanTree:
    """Spans by their tokens. `tiers` and `policy` are `CacheOrder`'s; `saving`: a store waits."""

    def __init__(self, tiers: Sequence[str], policy: str | Policy, *, saving: bool) -> None:
        self._trie: PromptTrie[Span] = PromptTrie()
        self._order: CacheOrder[SpanNode] = CacheOrder(tiers, policy)
        self._recent = RecentSpans()
        self._gone = EvictedBranches()
        self._saving = saving
        self.unsaved: dict[SpanNode, None] = {}  # parents before their children
        # Content of spans before the device got work on their pieces, until that is proven.
        self._unproven: dict[SpanNode, list[Piece | None]] = {}
        self.page = device_memory.device_memory().page
        self.buffers = 0  # the arrays of all spans
        self.evicted = dict.fromkeys(tiers, 0)

    def __len__(self) -> int:
        return len(self._order)

    @property
    def nbytes(self) -> int:
        """Bytes of all spans, in whole pages."""
        return self._order.nbytes

    def size(self, pieces: Iterable[Piece | None]) -> int:
        """Bytes that such pieces take of the device, in whole pages."""
        return layouts.nbytes(pieces, self.page)

    @property
    def tiers(self) -> tuple[str, ...]:
        """From least to most persistent."""
        return self._order.tiers

    def advance(self) -> int:
        """Begin a new request; returns its tick."""
        return self._order.advance()

    def check_tier(self, tier: str) -> None:
        """Check a tier's name; ValueError if it is unknown."""
        self._order.rank(tier)

    def walk(self, namespace: str, ids: Tokens[int]) -> Match[Span]:
        """The spans along `ids`; the last may be shared in part only. Changes nothing."""
        return self._trie.walk(namespace, ids)

    def present(self, namespace: str, ids: Tokens[int]) -> int:
        """The number of these tokens, from the first on, that have rows here that are not lent."""
        nodes, length = self._trie.walk(namespace, ids)
        lent = (node.start for node in nodes if is_moved_out(node))
        return min(next(lent, length), length)

    def nodes(self) -> Iterator[SpanNode]:
        """Every span, parents before their children."""
        return self._trie.nodes()

    def newest(self, namespace: str) -> Iterator[SpanNode]:
        """The spans of one namespace, the last used first."""
        return self._recent.newest(namespace)

    # Fetching.

    def use(self, nodes: Sequence[SpanNode], reached: int) -> None:
        """Note that a fetch resumed at `reached`: spans before it came back, others were near."""
        self._order.use(node.value.entry for node in nodes if node.end <= reached)
        self._order.touch(node.value.entry for node in nodes if node.end > reached)
        self._recent.note(nodes)

    def exclusive(self, nodes: Sequence[SpanNode], reached: int) -> list[int]:
        """The spans of a path, by index, that only a request resuming at `reached` needs."""
        alone = []
        for index in range(len(nodes) - 1, -1, -1):
            node = nodes[index]
            if node.end > reached or len(node.children) > (index + 1 < len(nodes)):
                break
            if node.value.pinned or node.value.entry.holds:
                break
            alone.append(index)
        return alone

    def resized(self, nodes: Iterable[SpanNode]) -> None:
        """Update the sizes of spans whose pieces have changed."""
        for node in nodes:
            size = self.size(node.value.pieces)
            self._order.resize(node.value.entry, size, len(node.tokens))
            self._count(node)

    def _count(self, node: SpanNode) -> None:
        number = layouts.arrays(node.value.pieces)
        self.buffers += number - node.value.buffers
        node.value.buffers = number

    def hold(self, node: SpanNode) -> Entry[SpanNode]:
        """Keep a span and all it hangs on from being evicted, until its entry is released."""
        self._order.hold(node.value.entry)
        return node.value.entry

    def release(self, entry: Entry[SpanNode]) -> None:
        """Undo one `hold`, unless the span is gone already."""
        if entry in self._order and entry.holds:
            self._order.release(entry)

    # Inserting.

    def add(
        self,
        namespace: str,
        layout: Layout,
        ids: Tokens[int],
        insertion: Insertion,
    ) -> SpanNode:
        """The span at the end of `ids`, made when missing; all spans passed are completed.

        Rows that are kept out stay so, except those that the store still has to get.
        """
        tier, keep_out = insertion.tier, insertion.rows is Rows.KEEP_OUT
        nodes, length = self._trie.walk(namespace, ids)
        inside = bool(nodes) and length < nodes[-1].end
        if inside and (length < len(ids) or self._must_end(nodes[-1], layout, tier)):
            nodes[-1] = self.split(layout, nodes[-1], length)
        node = nodes[-1] if nodes else self._trie.root(namespace)
        pieces: list[Piece | None] = [None] * len(layout)
        wanted = [
            SpanPieces(n.start, n.end, n.value.pieces, keep_out and n not in self.unsaved)
            for n in nodes
        ]
        if length < len(ids):
            wanted.append(SpanPieces(length, len(ids), pieces))
        self._collect(layout, nodes, insertion, wanted)
        saving = self._saving and insertion.on_disk
        grown = self._passed(nodes)
        if saving and not layouts.cut_anywhere(layout):
            # A checkpoint was taken inside what is stored already.
            self.unsaved |= dict.fromkeys(grown)
        if length < len(ids):
            node = self._extend(node, ids, pieces, tier)
            if saving:
                self.unsaved[node] = None
        elif not inside or node.end == len(ids):
            self._order.promote(node.value.entry, tier)
        return node

    def _collect(
        self,
        layout: Layout,
        nodes: Sequence[SpanNode],
        insertion: Insertion,
        wanted: Sequence[SpanPieces],
    ) -> None:
        """Fill what is wanted from the layers; what that changes in `nodes` is to be proven."""
        held = [list(node.value.pieces) for node in nodes]
        others = [node.value.pieces for node in self._unproven if node not in nodes]
        given_up = others if insertion.rows is Rows.RETURN else None
        layers, at = insertion.layers, insertion.at
        try:
            with device.work():
                layouts.collect(layout, layers, at, wanted, emptying=given_up)
        finally:
            self._note_changed(nodes, held)

    def _passed(self, nodes: Sequence[SpanNode]) -> list[SpanNode]:
        """Note that an insertion passed these spans; those that it made larger."""
        self._order.touch(node.value.entry for node in nodes)
        self._recent.note(nodes)
        before = [node.value.entry.nbytes for node in nodes]
        self.resized(nodes)
        pairs = zip(nodes, before, strict=True)
        return [node for node, size in pairs if node.value.entry.nbytes > size]

    def _must_end(self, node: SpanNode, layout: Layout, tier: str) -> bool:
        """True if a path that ends inside a span needs an end of its own there."""
        dearer = self._order.rank(tier) > node.value.entry.tier
        return dearer or not layouts.cut_anywhere(layout)

    def _extend(
        self, parent: SpanNode, ids: Tokens[int], pieces: list[Piece | None], tier: str
    ) -> SpanNode:
        node = self._trie.extend(parent, ids[parent.end :])
        above = parent.value.entry if parent.parent is not None else None
        size, length = self.size(pieces), len(node.tokens)
        key = path_digest(node.model, ids)
        entry = self._order.push(node, tier, size, length, above, key)
        node.value = Span(pieces, entry)
        self._recent.note([node])
        self._count(node)
        self._unproven[node] = [None] * len(pieces)
        self._gone.remove(node.model, ids[: node.start], ids[node.start])
        return node

    def split(self, layout: Layout, node: SpanNode, at: int) -> SpanNode:
        """Cut a span at position `at` of its path; returns the new first part."""
        span = node.value
        with device.work():
            left, right = layouts.split(layout, span.pieces, len(node.tokens), at - node.start)
        upper = self._trie.split(node, at)
        key = path_digest(upper.model, upper.path())
        size = self.size(left)
        entry = self._order.split(span.entry, upper, size, len(upper.tokens), key)
        upper.value = Span(left, entry, saved=span.saved)
        span.pieces = right
        self._recent.note([upper])
        self._count(upper)
        self._unproven |= {upper: [None] * len(left), node: [None] * len(right)}
        self.resized([node])
        if node in self.unsaved:
            del self.unsaved[node]
            self.unsaved |= {upper: None, node: None}
        return upper

    def _note_changed(self, nodes: Sequence[SpanNode], held: Sequence[list[Piece | None]]) -> None:
        for node, before in zip(nodes, held, strict=True):
            pairs = zip(node.value.pieces, before, strict=True)
            if any(now is not then for now, then in pairs):
                self._unproven.setdefault(node, before)

    # Proving.

    def begin(self) -> bool:
        """Have the device write the spans' unwritten content; False if there is none."""
        if self._unproven:
            with device.work():
                layouts.begin(piece for node in self._unproven for piece in node.value.pieces)
        return bool(self._unproven)

    def proved(self) -> None:
        """Accept the changes: the device has finished all its work."""
        self._unproven.clear()

    def withdraw(self) -> None:
        """Undo the changes: spans return to their former content; those without any are removed."""
        unproven, self._unproven = self._unproven, {}
        there = [node for node in unproven if node.value.entry in self._order]
        for node in there:
            node.value.pieces = unproven[node]
            if is_moved_out(node):
                self.unsaved.pop(node, None)
        self.resized(there)
        for node in sorted(there, key=lambda node: -node.end):
            self.drop_moved_out(node)

    def lose(self, layout: Layout, nodes: Iterable[SpanNode]) -> None:
        """Drop the remaining rows of spans whose other rows moved out and were lost."""
        for node in nodes:
            pairs = list(zip(layout, node.value.pieces, strict=True))
            if any(kind.anywhere and piece is None for kind, piece in pairs):
                node.value.pieces[:] = [None if kind.anywhere else piece for kind, piece in pairs]

    # Leaving.

    def evict(self, limits: Limits, leaving: Callable[[SpanNode], None]) -> None:
        """Evict spans, each passed to `leaving` first, until the limits are kept."""
        while limits.passed(Limits(self.nbytes, len(self), self.buffers)):
            entry = self._order.pop()
            if entry is None:
                break  # what is left is pinned or leased
            node = entry.item
            try:
                leaving(node)
            finally:
                self.evicted[self.tiers[entry.tier]] += 1
                self._remember(node)
                self._forget(node)

    def discard(self, node: SpanNode) -> None:
        """Take out a leaf that its owner no longer wants."""
        self._order.remove(node.value.entry)
        self._forget(node)

    def discard_path(self, namespace: str, ids: Tokens[int]) -> int:
        """Take out the spans that only this path needs, end first; returns the bytes freed."""
        before = self.nbytes
        nodes, length = self._trie.walk(namespace, ids)
        for node in reversed([node for node in nodes if node.end <= length]):
            if node.children or node.value.pinned or node.value.entry.holds:
                break
            self.discard(node)
        return before - self.nbytes

    def drop(self, meant: Callable[[SpanNode], bool]) -> int:
        """Take out the spans that are meant, the ends of paths first; returns the bytes freed.

        A span stays if one that is not meant hangs on it.
        """
        before = self.nbytes
        for node in reversed(list(self._trie.nodes())):
            if not node.children and meant(node):
                self.discard(node)
        return before - self.nbytes

    def _forget(self, node: SpanNode) -> None:
        self.unsaved.pop(node, None)
        self._unproven.pop(node, None)
        self._recent.remove(node)
        self.buffers -= node.value.buffers
        self._trie.prune(node)

    def drop_moved_out(self, node: SpanNode) -> None:
        """Take out spans whose rows moved out and never returned, up from a leaf."""
        while node.parent is not None and node.value.entry in self._order and is_moved_out(node):
            parent, span = node.parent, node.value
            if node.children or span.pinned or span.entry.holds or span.saved:
                break
            self.discard(node)
            node = parent

    def next_ids(self, namespace: str, ids: Tokens[int]) -> tuple[int, ...]:
        """The ids with which stored paths go on where `ids` leaves them."""
        nodes, length = self._trie.walk(namespace, ids)
        if nodes and length < nodes[-1].end:
            return (nodes[-1].tokens[length - nodes[-1].start],)
        return tuple(nodes[-1].children) if nodes else ()

    def was_evicted(self, namespace: str, ids: Tokens[int], at: int) -> bool:
        """True if a span that went on like `ids` from token `at` has been evicted."""
        return at < len(ids) and self._gone.has(namespace, ids[:at], ids[at])

    def clear(self) -> None:
        """Forget everything."""
        self._trie.clear()
        self._order.clear()
        self._recent.clear()
        self._gone.clear()
        self.unsaved.clear()
        self._unproven.clear()
        self.buffers = 0

    def _remember(self, node: SpanNode) -> None:
        path = node.path()
        self._gone.add(node.model, path[: node.start], path[node.start])

    # Counting.

    def held(self) -> dict[str, Held]:
        """Spans, tokens and bytes by tier."""
        sums = {tier: [0, 0, 0] for tier in self.tiers}
        for node in self._trie.nodes():
            entry = node.value.entry
            for index, amount in enumerate((1, len(node.tokens), entry.nbytes)):
                sums[self.tiers[entry.tier]][index] += amount
        return {tier: Held(*amounts) for tier, amounts in sums.items()}

    def check(self) -> Iterator[str]:
        """Everything that is wrong, a line each (law 3)."""
        total = count = buffers = 0
        for node in self._trie.nodes():
            entry = node.value.entry
            count += 1
            total += entry.nbytes
            buffers += layouts.arrays(node.value.pieces)
            if self.size(node.value.pieces) != entry.nbytes:
                yield f"{node!r} holds other bytes than it says"
            if entry.item is not node or entry not in self._order:
                yield f"{node!r} has no place in the order"
            if entry.children != len(node.children):
                yield f"{node!r} has {len(node.children)} children, its entry {entry.children}"
            if node.parent is None or node.parent.children.get(node.tokens[0]) is not node:
                yield f"{node!r} is not its parent's child"
        if total != self.nbytes:
            yield f"spans hold {total} bytes, the counter says {self.nbytes}"
        if count != len(self._recent):
            yield f"there are {count} spans, and {len(self._recent)} among the recent ones"
        if buffers != self.buffers:
            yield f"spans have {buffers} buffers, the counter says {self.buffers}"
        if count != len(self._order):
            yield f"there are {count} spans, and {len(self._order)} in the order"
