"""PromptCache: prefixes of prompts in memory and in a store, shared, found by their tokens.

One radix tree a namespace; each of its spans keeps the layers' content for its own tokens and for
no others, so a prefix that many conversations share is kept once.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from . import device
from .disk.writer import Writer, most_waiting
from .disk_order import DiskOrder
from .explain import Counters
from .forgetting import Forgetter, Forgotten, Moment
from .insertion import Insertion, PathEnd, Rows, check_rows
from .layers import device_memory
from .layers import layout as layouts
from .lookup import Lookup, Walk, Wanted
from .memory.budget import MemoryBudget
from .memory.leases import Lease
from .memory.limits import Limits
from .memory.memory import Memory
from .memory.policies import Policy
from .memory.span_tree import SpanTree
from .persistence import Persistence, Saved
from .proof import Proof
from .store import NullStore, Store, WatchedStore
from .trie import Tokens
from .view import CacheView, checked, most_of
from .worth import TIERS


class PromptCache(CacheView):
    """Keeps the layers that models computed for prefixes of prompts, to be fetched again.

    `memory_bytes` limits the spans in memory, `spans` their number if given; `disk` is a `Store`,
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
        limits = Limits.checked(memory_bytes, spans)._replace(buffers=_most_buffers())
        self._store: Store = disk if disk is not None else NullStore()
        self._saving = not isinstance(self._store, NullStore)
        if isinstance(self._store, WatchedStore):
            self._store.watch(DiskOrder(tiers))
        self._lock = threading.RLock()
        self._tree = SpanTree(tiers, policy, saving=self._saving)
        self._memory = Memory.of(self._tree)
        self._counters = Counters()
        self._writer = Writer(self._store, most_waiting(limits.nbytes))
        self._forgetter = Forgetter(self._lock, self._memory, self._store, self._writer)
        self._proof = Proof(self._tree)
        known = self._memory.namespaces.layouts
        self._lookup = Lookup(self._tree, self._store, self._writer, known)
        self._persistence = Persistence(self._store, self._tree, self._writer, self._proof, known)
        self._budget = MemoryBudget(self._tree, limits, self._persistence.leave)
        # Spans know their neighbours both ways: nobody should wait for the collector of cycles.
        weakref.finalize(self, self._tree.clear).atexit = False

    def fetch(
        self,
        namespace: str,
        tokens: Iterable[int],
        headroom: int = 0,
        *,
        rows: Rows = Rows.COPY,
        prefill_speed: float | None = None,
        most: int | None = None,
    ) -> Lease:
        """The longest stored prefix of `tokens`, never all of them, as layers ready to run.

        The layers have room for the rest of the prompt and `headroom` tokens more before they grow.
        With `Rows.GIVE`, rows that nobody else needs move into them instead of being copied; an
        `insert` returns them, and dropping the layers without it loses rows that no store holds.
        With `prefill_speed`, in tokens a second, spans that the disk would deliver later are left
        to prefill. With `most`, it is no longer than that, however much is stored: another rank
        holds less. Nothing here waits for other processes or for the writer: 20 ms for each look at
        an index that is locked, and then no look at it for a while. Threads of this process take
        turns.
        """
        ids = checked(tokens)
        check_rows(rows, Rows.COPY, Rows.GIVE)
        with self._lock:
            self._memory.begin()
            asked = Wanted(namespace, ids, most_of(ids, most))
            walk, lease = self._lease(asked, len(ids) + headroom, rows, prefill_speed)
            if walk is not None:
                self._tree.use(walk.nodes, lease.cached)
            if lease.layers is not None:
                # The store, which saw nothing of what came from memory, hears of it in time.
                in_memory = lease.cached - lease.from_disk
                self._writer.note_use(namespace, ids[:in_memory])
            self._counters.count(len(ids), lease.cached, lease.why)
            return lease

    def take_back(self, namespace: str, tokens: Iterable[int], lease: Lease) -> None:
        """Return a lease that nobody has used, as if its `fetch` had never been."""
        ids = checked(tokens)
        with self._lock:
            self._counters.uncount(len(ids), lease.cached, lease.why)
        if lease.layers is not None:
            self.insert(namespace, ids[: lease.cached], lease.layers, rows=Rows.RETURN)

    def fetch_ahead(
        self, namespace: str, tokens: Iterable[int], *, most: int | None = None
    ) -> Lease:
        """Fetch for work that nobody has asked for: neither a hit nor a use of what it finds.

        A caller that goes on from there reports how far with `count_ahead`.
        """
        ids = checked(tokens)
        with self._lock:
            self._memory.begin()
            asked = Wanted(namespace, ids, most_of(ids, most))
            return self._lease(asked, len(ids), Rows.COPY, None)[1]

    def count_ahead(self, tokens: int) -> None:
        """Count so many tokens as prefilled before anybody asked for them."""
        with self._lock:
            self._counters.tokens_ahead += tokens

    def _lease(
        self, wanted: Wanted, length: int, rows: Rows, speed: float | None
    ) -> tuple[Walk | None, Lease]:
        """The lease of a prompt, with room for `length` tokens, and the walk that found it."""
        namespace, ids, most = wanted
        self._writer.note_lookup()
        walk = self._lookup.walk(namespace, ids[: most + 1])
        if walk is None:
            return None, Lease(None, 0, self._lookup.why(namespace, ids))
        hit = self._lookup.find(walk, length, rows, speed)
        plan, why = hit.plan, self._lookup.why_no_further(wanted, hit)
        if hit.layers is not None:
            whole = [node for node in walk.nodes if node.end <= plan.resume_at]
            held = self._tree.hold(whole[-1]) if whole else None
            self._memory.loans.lend(namespace, ids[: plan.resume_at], hit.layers, held)
        return walk, Lease(hit.layers, plan.resume_at, why, plan.matched, plan.from_disk)

    def insert(
        self,
        namespace: str,
        tokens: Iterable[int],
        layers: Sequence[Any],
        tier: str = "assistant",
        *,
        rows: Rows = Rows.COPY,
        on_disk: bool = True,
    ) -> int:
        """Keep the content of `layers` for `tokens`; returns for how many, at most what they cover.

        Only tokens that are not stored yet are copied, and the layers stay the caller's. With
        `Rows.RETURN` their list is emptied, one by one, so that a long conversation is never held
        twice; with `Rows.KEEP_OUT` rows that a fetch gave them stay there until they are returned.
        Without `on_disk` the store never gets it, unless another conversation has the same prefix.
        If the device failed nothing of it is kept: RuntimeError. Nothing is kept either, and 0
        returned, while the namespace is being forgotten.
        """
        ids = checked(tokens)
        insertion = Insertion(layers, len(ids), tier, rows, on_disk)
        with self._lock, self._proof.of(device.failures()):
            return self._insert(namespace, ids, insertion)

    def insert_path(
        self,
        namespace: str,
        tokens: Iterable[int],
        layers: Sequence[Any],
        ends: Sequence[PathEnd],
        *,
        since: Moment,
        on_disk: bool = True,
    ) -> None:
        """Insert at several ends of one path, each with its tier, the last one last.

        The device is waited for once. `since` is the `moment` when these layers were made: if the
        device has failed since they are lost, and RuntimeError is raised; if their namespace was
        forgotten meanwhile, nothing of them is kept.
        """
        ids = checked(tokens)
        with self._lock, self._proof.of(since.failures):
            if self._forgetter.forgetting.bars(namespace, since.forgotten):
                return
            for at, tier, rows in ends:
                self._insert(namespace, ids[:at], Insertion(layers, at, tier, rows, on_disk))

    def _insert(self, namespace: str, ids: Tokens[int], insertion: Insertion) -> int:
        layers = insertion.layers
        check_rows(insertion.rows, Rows.COPY, Rows.KEEP_OUT, Rows.RETURN)
        self._tree.check_tier(insertion.tier)
        layout = layouts.layout_of(layers)
        # Nothing of it in memory: whatever the store says, these layers are what they are.
        known = self._memory.namespaces.layouts.get(namespace, layout)
        at = layouts.position_of(known, layers)
        at = len(ids) if at is None else at
        ids = ids[:at]
        if not len(ids):
            raise ValueError("layers hold no token yet; run the model before inserting them")
        self._memory.loans.check(namespace, ids, layers)
        if self._forgetter.forgetting.bars(namespace, self._forgetter.forgetting.count):
            return 0
        self._memory.begin()
        self._memory.namespaces.layouts[namespace] = known
        kept = self._budget.keep(namespace, known, ids, replace(insertion, at=at))
        if insertion.rows is Rows.RETURN and isinstance(layers, list):
            layers.clear()
        return kept

    def pin(self, namespace: str, tokens: Iterable[int]) -> None:
        """Keep a stored prefix whatever happens; ValueError if it is not all in memory."""
        ids = checked(tokens)
        with self._lock, self._proof.of(device.failures()):
            node = self._lookup.end(namespace, ids)
            if not node.value.pinned:
                self._tree.hold(node)
                node.value.pinned = True
            if node in self._tree.unsaved:
                self._persistence.save([node])
        self._writer.wait()
        self._store.pin(namespace, ids, pinned=True)

    def unpin(self, namespace: str, tokens: Iterable[int]) -> None:
        """Undo `pin`; ValueError if nothing is pinned that ends there."""
        ids = checked(tokens)
        stored = self._store.pin(namespace, ids, pinned=False)
        with self._lock:
            nodes, length = self._tree.walk(namespace, ids)
            node = nodes[-1] if nodes and nodes[-1].end == length == len(ids) else None
            if node is not None and node.value.pinned:
                node.value.pinned = False
                self._tree.release(node.value.entry)
            elif not stored:
                raise ValueError(f"nothing is pinned that ends after these {len(ids)} tokens")

    def set_pinned(self, namespace: str, tokens: Iterable[int], *, pinned: bool) -> bool:
        """`pin` or `unpin` a prefix that memory or the store has; False where neither does."""
        ids = checked(tokens)
        try:
            (self.pin if pinned else self.unpin)(namespace, ids)
        except ValueError:  # not all of it is in memory
            return self._store.pin(namespace, ids, pinned=pinned)
        return True

    def trim_to(self, *, memory_bytes: int | str | None = None, spans: int | None = None) -> None:
        """Evict until memory is within these limits; pinned and leased spans stay."""
        most = self._budget.limits.nbytes if memory_bytes is None else memory_bytes
        limits = Limits.checked(most, spans)
        with self._lock, self._proof.of(device.failures()):
            self._memory.begin()
            self._budget.evict(limits)

    def resize(self, memory_bytes: int | str) -> None:
        """Hold no more than this from now on; spans over it are evicted."""
        nbytes = Limits.checked(memory_bytes, None).nbytes
        with self._lock, self._proof.of(device.failures()):
            self._memory.begin()
            self._budget.limits = self._budget.limits._replace(nbytes=nbytes)
            self._budget.evict(self._budget.limits)

    def discard(self, namespace: str, tokens: Iterable[int]) -> int:
        """Forget, in memory, the spans that only this path needs; returns the bytes freed."""
        ids = checked(tokens)
        with self._lock:
            self._memory.begin()
            return self._tree.discard_path(namespace, ids)

    def flush(self, *, wait: bool = True, short: bool = True) -> int:
        """Write the spans that the store does not have yet; returns their number.

        Without `wait` they are written behind the caller's back. Without `short`, ends of paths
        that are not worth a file of their own stay in memory, for the next span. A lock that
        another process keeps is waited for once; spans it keeps from being written are reported,
        and stay in memory.
        """
        written, left = self._hand_over(short=short)
        while wait and not self._writer.wait() and left:
            more, left = self._hand_over(short=short)
            written += more
        return written

    def _hand_over(self, *, short: bool) -> Saved:
        """Give the writer as many spans as it can take."""
        with self._lock, self._proof.of(device.failures()):
            self._memory.begin()
            return self._persistence.flush(short=short)

    def label(self, namespace: str, name: str, identity: str = "") -> None:
        """Record the user's name for the model of a namespace, for listings of the store.

        With the model's `identity`, which is the same under each of its salts and settings, the
        store knows the namespaces that nobody opens any more: those are evicted first.
        """
        with self._lock:
            self._memory.namespaces.names[namespace] = name
        self._store.label(namespace, name, identity)

    def clear(self) -> None:
        """Forget everything in memory, pinned or not; `forget` does so in the store too."""
        with self._lock:
            self._tree.clear()
            self._memory.namespaces.layouts.clear()
            self._writer.count_uses()

    def forget(self, *, model: str | None = None, days: float | None = None) -> Forgotten:
        """Forget, in memory and in the store, all that is not younger, pinned or not.

        `model` is its label (`label`), or the beginning of its namespaces. Nothing of it is on its
        way to the store behind this, and layers of running requests are not kept. With `days`,
        spans unused for so long, unless pinned or below something younger; running requests are in
        use. Memory of MLX goes back to the system.
        """
        gone = self._forgetter.forget(model, days)
        device_memory.trim_pool()
        return gone


def _most_buffers() -> int | None:
    """The most arrays that spans in memory may have: half of those that can exist at all."""
    most = device_memory.device_memory().buffers
    return None if most is None else most // 2
