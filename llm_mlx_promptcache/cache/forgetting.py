"""Namespaces that were forgotten, so that work begun before does not bring them back.

A running request holds in its layers the state it began with. Were these inserted at its end,
everything just removed would be there again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import NamedTuple

from .disk.writer import Writer
from .memory.memory import Memory
from .store import Store


class Moment(NamedTuple):
    """The moment when layers were made, as counts of device failures and of forgettings.

    Layers from before a failure are lost; those from before a forgetting bring none of it back.
    """

    failures: int
    forgotten: int


class Forgotten(NamedTuple):
    """The bytes that were freed, in memory and in the store.

    `left` are the hosts whose stores still have some of it, where a model runs over several.
    """

    memory: int
    disk: int
    left: tuple[str, ...] = ()


class Forgetting:
    """The times at which namespaces were forgotten; not locked, the owner is."""

    def __init__(self) -> None:
        self.count = 0
        self._every = 0  # the count when all were forgotten
        self._of: dict[str, int] = {}  # the same for one namespace, where that was later
        self._under_way: list[frozenset[str] | None] = []

    def begins(self, namespaces: Iterable[str] | None) -> frozenset[str] | None:
        """Begin to forget these, or all, until it has `ended`."""
        names = None if namespaces is None else frozenset(namespaces)
        self._under_way.append(names)
        return names

    def ended(self, names: frozenset[str] | None) -> None:
        """End it: all of it is gone, and work that begins now may be kept."""
        self._under_way.remove(names)
        self.count += 1
        if names is None:
            self._every = self.count
            self._of.clear()
        else:
            self._of |= dict.fromkeys(names, self.count)

    def bars(self, namespace: str, since: int) -> bool:
        """True if work begun at this count must not be kept in a namespace."""
        if any(names is None or namespace in names for names in self._under_way):
            return True
        return since < max(self._every, self._of.get(namespace, 0))


class Forgetter:
    """Runs `forget` on a cache's parts; one at a time, under the cache's lock in steps."""

    def __init__(self, lock: threading.RLock, memory: Memory, store: Store, writer: Writer) -> None:
        self.forgetting = Forgetting()
        self._lock = lock
        self._memory = memory
        self._store = store
        self._writer = writer
        self._one_forgets = threading.Lock()

    def forget(self, model: str | None, days: float | None) -> Forgotten:
        """Forget all of a model, or all; with `days`, spans unused for that long."""
        with self._one_forgets:
            return self._all(model) if days is None else self._old(model, days)

    def _all(self, model: str | None) -> Forgotten:
        with self._lock:
            names = self.forgetting.begins(self._memory.namespaces.of_model(model))
            self._writer.forget_uses(names)
            memory = self._memory.namespaces.drop(names)
        try:
            self._writer.drop(names)
            return Forgotten(memory, self._store.clear(model=model))
        finally:
            with self._lock:
                self.forgetting.ended(names)

    def _old(self, model: str | None, days: float) -> Forgotten:
        self._writer.count_uses()  # the store hears of uses in memory
        self._writer.wait()
        disk = self._store.clear(model=model, days=days)
        with self._lock:
            self._memory.begin()
            names = self._memory.namespaces.of_model(model)
            last = self._memory.ages.unused_since(days)
            return Forgotten(self._memory.namespaces.drop_unused(names, last), disk)
