"""PromptCache: prefixes of prompts in memory and in a store, shared, found by their tokens.

One radix tree a namespace; each of its spans keeps what the model's layers hold for its own
tokens and for no others, so a prefix that many conversations share is kept once.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from . import device
from .disk.bandwidth import Bandwidth
from .disk.writer import MOST_WAITING, Writer
from .explain import Counters, Why
from .layers import layout as layouts
from .layers.layout import Layout
from .memory.leases import Lease, Loans
from .memory.policies import Policy
from .memory.span_tree import SpanNode, SpanTree, is_moved_out, parts_of
from .persistence import chain_of, drafts
from .plan import Plan, plan
from .sizes import parse_size
from .span import NOTHING, Draft, Found
from .store import NullStore, Store
from .trie import Tokens, as_tokens
from .worth import TIERS

_MOST_DRAFTED = 64 << 20  # bytes that are made ready to be written behind one wait for the device
_MOST_ATTEMPTS = 16  # of one fetch to read from the store what turns out to be damaged
_ON_THEIR_WAY = 4  # spans that wait to be written may take this part of the budget beside it
_LEAST_ON_THEIR_WAY = 16 << 20  # bytes; a small budget must not lose what could be written


class PromptCache:
    """Keeps what models computed for prefixes of prompts, and hands it to who needs it again.

    `memory_bytes` bounds the spans in memory, `spans` their number if given; `disk` is a `Store`,
    or None for none. `tiers` run from least to most persistent. Calls are safe from any thread.
    """

    def __init__(
        self,
        memory_bytes: int | str = "4GB",
        disk: Store | None = None,
        *,
        spans: int | None = None,
        tiers: Sequence[str] = TIERS,
        policy: str | Policy = "default",
    ) -> None:
        self._max_bytes = parse_size(memory_bytes, "memory_bytes")
        self._max_spans = _checked_count(spans)
        self._store: Store = disk if disk is not None else NullStore()
        self._saving = not isinstance(self._store, NullStore)
        self._lock = threading.RLock()
        self._tree = SpanTree(tiers, policy, self._saving)
        self._layouts: dict[str, Layout] = {}
        self._counters = Counters()
        self._loans = Loans()
        most = max(self._max_bytes // _ON_THEIR_WAY, _LEAST_ON_THEIR_WAY)
        self._writer = Writer(self._store, min(most, MOST_WAITING))
        self._bandwidth = Bandwidth()
        self._since = 0  # how often the device had failed when a change to spans began
        # Spans know their neighbours both ways: nobody should wait for the collector of cycles.
        weakref.finalize(self, self._tree.clear).atexit = False

    def fetch(
        self,
        namespace: str,
        tokens: Iterable[int],
        room: int = 0,
        *,
        take: bool = False,
        prefill_speed: float | None = None,
    ) -> Lease:
        """The longest stored prefix of `tokens`, never all of them, as layers ready to run.

        The layers have room for the rest of the prompt and `room` tokens more before they grow.
        With `take`, rows that nobody else needs move into them instead of being copied; they come
        back with `insert`, and who lets go of the layers without it loses what no store holds.
        With `prefill_speed`, in tokens a second, what the disk would give later is left to prefill.
        Nothing here waits for other processes or for the writer: 20 ms for each look at an index
        that is locked, and then no look at it for a while. Threads of this process take turns.
        """
        ids = _checked(tokens)
        with self._lock:
            self._begin()
            self._writer.note_lookup()
            layout = self._layout(namespace)
            if layout is None:
                return self._counted(ids, Lease(None, 0, self._why(namespace, ids, 0, 0)))
            nodes, length = self._tree.walk(namespace, ids[:-1])
            unreadable, layers, slow = False, None, False
            attempts, stored = 0, None
            # What turns out not to be what was written goes, so each attempt has less before it;
            # where the fault is not a file's, the store is left out of it.
            while layers is None:
                found = self._find(namespace, layout, ids[:-1], nodes, length, stored)
                unreadable |= found.restore is not None and found.restore.unreadable
                if found.restore is not None and self._bandwidth.is_slower(
                    found.restore.nbytes, found.from_disk, prefill_speed
                ):
                    slow = True
                    found.restore.close()
                    found = self._find(namespace, layout, ids[:-1], nodes, length, NOTHING)
                if found.place == 0:
                    break
                layers = self._join(layout, found, nodes, len(ids) + room, take)
                unreadable |= layers is None
                attempts += 1
                removed = found.restore is not None and found.restore.removed
                stored = None if removed and attempts < _MOST_ATTEMPTS else NOTHING
            why = self._why(namespace, ids, found.place, found.matched, unreadable, slow)
            self._tree.use(nodes, found.place)
            if layers is not None:
                whole = [node for node in nodes if node.end <= found.place]
                held = self._tree.hold(whole[-1]) if whole else None
                self._loans.lend(namespace, ids[: found.place], layers, held)
                # The store, which saw nothing of what came from memory, hears of it in time.
                self._writer.note_use(namespace, ids[: min(found.place, found.in_memory)])
            lease = Lease(layers, found.place, why, found.matched, found.from_disk)
            return self._counted(ids, lease)

    def insert(
        self,
        namespace: str,
        tokens: Iterable[int],
        layers: Sequence[Any],
        tier: str = "assistant",
        *,
        consume: bool = False,
        on_disk: bool = True,
        refill: bool = True,
    ) -> int:
        """Keep what `layers` hold for `tokens`; returns for how many, at most what they cover.

        Only what is not stored yet is copied. With `consume` the list of layers is emptied, one
        by one, so that a long conversation is never held twice; otherwise they stay the caller's.
        Without `on_disk` the store never gets it, unless another conversation has the same prefix.
        Without `refill`, rows that moved into a lease stay there until its last insert. Where
        the device failed nothing of it is kept: RuntimeError.
        """
        ids = _checked(tokens)
        with self._lock, self._proving(device.failures()):
            return self._insert(namespace, ids, layers, tier, consume, on_disk, refill)

    def insert_path(
        self,
        namespace: str,
        tokens: Iterable[int],
        layers: Sequence[Any],
        ends: Sequence[tuple[int, str]],
        *,
        since: int,
        consume: bool = False,
        on_disk: bool = True,
        refill: bool = True,
    ) -> None:
        """`insert` at several ends of one path, each with its tier, the last one last.

        The device is waited for once. `since` is how often it had failed (`device.failures`) when
        these layers were made: where it has failed again they are nobody's, and RuntimeError.
        """
        ids = _checked(tokens)
        *before, (end, tier) = ends
        with self._lock, self._proving(since):
            for at, its_tier in before:
                self._insert(namespace, ids[:at], layers, its_tier, False, on_disk, refill)
            refill = refill or consume
            self._insert(namespace, ids[:end], layers, tier, consume, on_disk, refill)

    def _insert(
        self,
        namespace: str,
        ids: Tokens[int],
        layers: Sequence[Any],
        tier: str,
        consume: bool,
        on_disk: bool,
        refill: bool,
    ) -> int:
        self._tree.check_tier(tier)
        layout = layouts.layout_of(layers)
        # Nothing of it in memory: whatever the store says, these layers are what they are.
        known = self._layouts.get(namespace, layout)
        at = layouts.position_of(known, layers)
        at = len(ids) if at is None else at
        ids = ids[:at]
        if not len(ids):
            raise ValueError("layers hold no token yet; run the model before inserting them")
        self._loans.check(namespace, ids, layers)
        self._begin()
        self._layouts[namespace] = known
        ids = ids[: self._fitting(namespace, known, ids, layers, at)]
        if len(ids):
            node = self._tree.add(namespace, known, ids, layers, at, tier, consume, on_disk, refill)
            if not layouts.cut_anywhere(known):
                self._tree.thin(known, node)
            held = self._tree.hold(node)  # what has just come is not what goes
            self._evict()
            self._tree.release(held)
            self._evict()
        if consume and isinstance(layers, list):
            layers.clear()
        return len(ids)

    def pin(self, namespace: str, tokens: Iterable[int]) -> None:
        """Keep a stored prefix whatever happens; ValueError where it is not all in memory."""
        ids = _checked(tokens)
        with self._lock, self._proving(device.failures()):
            node = self._end_of(namespace, ids)
            if not node.value.pinned:
                self._tree.hold(node)
                node.value.pinned = True
            if node in self._tree.unsaved:
                self._save([node])
        self._writer.wait()
        self._store.pin(namespace, ids, True)

    def unpin(self, namespace: str, tokens: Iterable[int]) -> None:
        """Undo `pin`; ValueError where nothing is pinned that ends there."""
        ids = _checked(tokens)
        stored = self._store.pin(namespace, ids, False)
        with self._lock:
            nodes, length = self._tree.walk(namespace, ids)
            node = nodes[-1] if nodes and nodes[-1].end == length == len(ids) else None
            if node is not None and node.value.pinned:
                node.value.pinned = False
                self._tree.release(node.value.entry)
            elif not stored:
                raise ValueError(f"nothing is pinned that ends after these {len(ids)} tokens")

    def trim_to(self, *, memory_bytes: int | str | None = None, spans: int | None = None) -> None:
        """Evict until no more is in memory than this; what is pinned or leased stays."""
        limit = (
            self._max_bytes if memory_bytes is None else parse_size(memory_bytes, "memory_bytes")
        )
        with self._lock, self._proving(device.failures()):
            self._begin()
            self._tree.evict(limit, _checked_count(spans), self._leaving)

    def discard(self, namespace: str, tokens: Iterable[int]) -> int:
        """Forget, in memory, what only this path needs; returns the bytes freed."""
        ids = _checked(tokens)
        with self._lock:
            self._begin()
            before = self._tree.nbytes
            nodes, length = self._tree.walk(namespace, ids)
            for node in reversed([node for node in nodes if node.end <= length]):
                if node.children or node.value.pinned or node.value.entry.holds:
                    break
                self._tree.discard(node)
            return before - self._tree.nbytes

    def flush(self, *, wait: bool = True, short: bool = True) -> int:
        """Write what the store does not have yet; returns how many spans that are.

        Without `wait` they are written behind the caller's back. Without `short`, ends of paths
        that are not worth a file of their own stay in memory, for what will come after them.
        A lock that another process keeps is waited for once; what it keeps from being written is
        told, and stays in memory.
        """
        written, more = self._hand_over(short)
        while wait and not self._writer.wait() and more:
            handed, more = self._hand_over(short)
            written += handed
        return written

    def _hand_over(self, short: bool) -> tuple[int, bool]:
        """Give the writer what it can take; how many spans that were, and whether more is left."""
        with self._lock, self._proving(device.failures()):
            self._begin()
            waiting, self._tree.unsaved = self._tree.unsaved, {}
            try:
                # Ends first: what they hang on is written with them.
                written, refused = self._save([*reversed(waiting)], short)
            except BaseException:
                self._tree.unsaved = waiting
                raise
            self._tree.unsaved = {node: None for node in waiting if node in self._tree.unsaved}
            self._writer.count_uses()
            return written, refused

    @property
    def saves(self) -> bool:
        """Whether there is a store to write to."""
        return self._saving

    def label(self, namespace: str, name: str, identity: str = "") -> None:
        """What people call the model of a namespace, for who looks at the store.

        With the model's `identity`, which is the same under each of its salts and settings, the
        store knows which namespaces nobody opens any more: those go first.
        """
        self._store.label(namespace, name, identity)

    def explain(self, namespace: str, tokens: Iterable[int]) -> Why:
        """Why a prompt would reuse what it would; for who may see all namespaces.

        A lease never tells one namespace what another one holds.
        """
        ids = _checked(tokens)
        with self._lock:
            layout = self._layout(namespace)
            nodes, length = self._tree.walk(namespace, ids[:-1])
            if layout is None:
                why = self._why(namespace, ids, 0, 0)
            else:
                found = self._find(namespace, layout, ids[:-1], nodes, length)
                unreadable = found.restore is not None and found.restore.unreadable
                why = self._why(namespace, ids, found.place, found.matched, unreadable)
                if found.restore is not None:
                    found.restore.close()
            if why.reason != "cold":
                return why
            others = {str(node.model) for node in self._tree.nodes()} - {namespace}
            longest = max((self._tree.walk(other, ids).length for other in others), default=0)
            return Why("namespace", longest) if longest else why

    def stats(self, elsewhere: int = 0) -> dict[str, Any]:
        """Hits, tokens reused, misses by reason; spans, tokens and bytes, in all and by tier.

        Of memory `bytes` are counted, span by span, and `held` is what MLX really holds but for
        leases (`leased`) and what the caller knows to be `elsewhere`, weights above all. What is
        `waiting` to be written is held as well, some of it by spans that are counted.
        """
        stored = self._store.stats()
        with self._lock:
            tiers = {tier: held._asdict() for tier, held in self._tree.held().items()}
            names = ("spans", "tokens", "bytes")
            total = {name: sum(held[name] for held in tiers.values()) for name in names}
            leased = self._loans.nbytes
            total |= {
                "held": max(0, layouts.active_memory() - elsewhere - leased),
                "leased": leased,
            }
            total["waiting"] = self._writer.waiting
            return {
                **asdict(self._counters),
                "evicted": dict(self._tree.evicted),
                "memory": {**total, "budget": self._max_bytes, "tiers": tiers},
                "disk": stored,
            }

    def check(self) -> list[str]:
        """What is wrong with what is in memory, a line each (law 3)."""
        with self._lock:
            self._begin()
            return list(self._tree.check())

    def clear(self) -> None:
        """Forget everything in memory, pinned or not; the store has its own `clear`."""
        with self._lock:
            self._tree.clear()
            self._layouts.clear()
            self._writer.count_uses()

    # Finding.

    def _layout(self, namespace: str) -> Layout | None:
        known = self._layouts.get(namespace)
        # What the store says is asked for each time: it may have been wrong.
        return known if known is not None else self._store.layout(namespace)

    def _find(
        self,
        namespace: str,
        layout: Layout,
        ids: Tokens[int],
        nodes: list[SpanNode],
        length: int,
        stored: Found | None = None,
    ) -> Plan:
        """What memory and store hold along `ids`, and how far that goes.

        What is `stored` is looked up where it is not said.
        """
        # What has left memory for the disk is found on its way there: nobody waits for it.
        parts = parts_of(nodes, length) + self._writer.parts(namespace, ids, length)
        length = parts[-1].end if parts else 0
        reached = layouts.resumable(layout, parts, length)
        if stored is None:
            stored = self._store.lookup(namespace, ids) if reached < len(ids) else NOTHING
        return plan(self._store, namespace, layout, ids, parts, reached, stored)

    def _join(
        self, layout: Layout, found: Plan, nodes: list[SpanNode], wanted: int, take: bool
    ) -> list[Any] | None:
        """The layers that a plan comes to; None where a file was not what it seemed."""
        moving: list[int] = []
        if take and not found.stitched:
            moving = self._tree.exclusive(nodes, min(found.place, found.in_memory))
        started = time.monotonic()
        try:
            layers = None
            if found.restore is not None:
                layers = found.restore.layers(layout, found.place, wanted - found.place)
            if layers is None:
                layers = layouts.join(
                    layout, found.parts, found.place, wanted - found.place, moving
                )
            if found.restore is None:
                return layers
            good = found.restore.verify()
            self._bandwidth.measured(found.restore.nbytes, time.monotonic() - started)
            return layers if good else None
        except Exception as error:
            device.note(error)
            self._tree.lose(layout, (nodes[index] for index in moving))
            # No content of any file may raise out of a lookup (law 6).
            if found.restore is None or not found.restore.failed(error):
                raise
            return None
        finally:
            self._tree.resized(nodes[index] for index in moving)
            if found.restore is not None:
                found.restore.close()

    def _why(
        self,
        namespace: str,
        ids: Tokens[int],
        count: int,
        matched: int,
        unreadable: bool = False,
        slow: bool = False,
    ) -> Why:
        if count == len(ids) - 1:
            return Why("whole")
        if unreadable:
            return Why("unreadable", count)
        if slow:
            return Why("slow", count)
        if self._store.unseen:
            return Why("locked", count)
        # What waits and was looked at is no reason: layers can't resume in it.
        if self._writer.holds(namespace, ids[:-1], max(count, matched)):
            return Why("writing", count)
        if count < matched:
            return Why("lent" if self._is_lent(namespace, ids, count) else "checkpoint", count)
        if self._tree.was_evicted(namespace, ids, count):
            return Why("evicted", count)
        if not count:
            return Why("cold")
        return Why("diverged", count, wanted=ids[count], stored=self._tree.next_ids(namespace, ids))

    def _is_lent(self, namespace: str, ids: Tokens[int], count: int) -> bool:
        """Whether rows after token `count` are away; nothing but a lease takes them."""
        layout = self._layouts.get(namespace, ())  # none where memory holds nothing
        nodes = [node for node in self._tree.walk(namespace, ids).nodes if node.end > count]
        pairs = [pair for node in nodes for pair in zip(layout, node.value.pieces, strict=True)]
        return any(kind.anywhere and piece is None for kind, piece in pairs)

    def _counted(self, ids: Tokens[int], lease: Lease) -> Lease:
        self._counters.count(len(ids), lease.cached, lease.why)
        return lease

    def _begin(self) -> None:
        """A new request: leases that ended since the last one let go of their spans."""
        self._tree.advance()
        for entry in self._loans.ended():
            self._tree.release(entry)
            self._tree.drop_moved_out(entry.item)

    # Keeping.

    def _fitting(
        self, namespace: str, layout: Layout, ids: Tokens[int], layers: Sequence[Any], at: int
    ) -> int:
        """How many of the tokens can be kept within the whole budget (law 10)."""
        nodes, length = self._tree.walk(namespace, ids)
        more = layouts.needed(layout, layers, at, length, len(ids)) if length < len(ids) else 0
        # Rows that moved into these layers take their place again.
        away = [node for node in nodes if is_moved_out(node)]
        held = sum(node.value.entry.nbytes for node in nodes)
        held += sum(layouts.needed(layout, layers, at, node.start, node.end) for node in away)
        if held + more <= self._max_bytes or not more:
            return len(ids)
        if layouts.cut_anywhere(layout):
            fit = (self._max_bytes - held) * (len(ids) - length) // more
            return length + max(0, fit)
        if held - self._tree.strippable(layout, nodes) + more > self._max_bytes:
            return length
        self._tree.strip(layout, nodes)  # the newest checkpoint alone
        return len(ids)

    def _end_of(self, namespace: str, ids: Tokens[int]) -> SpanNode:
        """The span that ends after `ids`, split out when needed; ValueError where none can."""
        layout = self._layout(namespace)
        nodes, length = self._tree.walk(namespace, ids)
        held = layouts.resumable(layout, parts_of(nodes, length), length) if layout else 0
        if layout is None or held < len(ids):
            raise ValueError(
                f"only {held} of these {len(ids)} tokens are in memory; insert them before pinning"
            )
        node = nodes[-1]
        return node if node.end == length else self._tree.split(layout, node, length)

    def _evict(self) -> None:
        self._tree.evict(self._max_bytes, self._max_spans, self._leaving)

    def _leaving(self, node: SpanNode) -> None:
        """What leaves memory goes to the store first, where it is not there yet."""
        if node in self._tree.unsaved:
            if not self._writer.has_room:
                self._writer.tell_lost()
            self._save([node])

    def _save(self, nodes: Sequence[SpanNode], short: bool = True) -> tuple[int, bool]:
        """Have the writer write what the store lacks of these paths.

        Returns how many spans that are, and whether more is left: where too much is waiting, a path
        stays unsaved, and no answer waits for a slow disk.
        """
        made: list[Draft] = []
        fresh: list[SpanNode] = []
        written, refused = 0, False
        try:
            for node in nodes:
                if not self._writer.has_room:
                    self._tree.unsaved[node], refused = None, True
                    continue
                fresh += [passed for passed in chain_of(node) if not passed.value.saved]
                made += self._drafts(node, [*self._writer.coming, *made], short)
                if not node.value.saved:
                    self._tree.unsaved[node] = None
                if sum(draft.nbytes for draft in made) > _MOST_DRAFTED:
                    written += self._write(made)
                    fresh.clear()
            written += self._write(made)
        except BaseException:
            for node in fresh:
                node.value.saved = False
            raise
        return written, refused

    def _drafts(self, node: SpanNode, coming: list[Draft], short: bool) -> list[Draft]:
        layout = self._layouts[str(node.model)]
        with device.work():
            return drafts(self._store, layout, self._tree.tiers, node, coming, short)

    def _write(self, made: list[Draft]) -> int:
        """Hand drafts to the writer, once the device has done all that they are made of."""
        count = len(made)
        if made:
            self._prove()
        for draft in made:
            self._writer.put(draft)
        made.clear()
        return count

    # Proving.

    @contextmanager
    def _proving(self, since: int) -> Iterator[None]:
        """A change to spans, which nobody finds before the device has done what they are made of.

        Where it failed, spans hold what they held before, or nothing.
        """
        self._since = since
        try:
            yield
            if self._tree.unproven:
                self._prove()
            self._tree.proved()
        except BaseException:
            self._tree.withdraw()
            raise

    def _prove(self) -> None:
        device.settle()
        if device.failures() != self._since:
            raise RuntimeError("the device failed meanwhile, so nothing of this is kept")


def _checked(tokens: Iterable[int]) -> Tokens[int]:
    ids = as_tokens(tokens)
    if not len(ids):
        raise ValueError("tokens is empty; a path has at least one token")
    return ids


def _checked_count(spans: int | None) -> int | None:
    if spans is not None and (isinstance(spans, bool) or not isinstance(spans, int) or spans < 0):
        raise ValueError(f"spans is {spans!r}; give a number of spans, or None for any")
    return spans
