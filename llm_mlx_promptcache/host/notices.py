"""Lines logged beside answers, and the front ends that have yet to be told."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import NamedTuple

_MOST_HELD = 50
_MOST_PROCESSES = 1000


class Notice(NamedTuple):
    """One line for the user: its level and logger, and the model it is about ("": all)."""

    level: int
    logger: str
    text: str
    model: str = ""

    def concerns(self, model: str) -> bool:
        """True if those who ask that model are told."""
        return self.model in ("", model)


class Notices:
    """The notices that still hold, each told once to each process that asks.

    In a process of its own each front end would have met it itself. A notice from a time when
    nobody asked (a disk that was full after an answer) waits for the next one who does. At most 50
    are kept of either kind, and the last 1,000 processes are told apart.
    """

    def __init__(self) -> None:
        self._held: OrderedDict[Notice, Callable[[], bool]] = OrderedDict()
        self._told: OrderedDict[Hashable, set[Notice]] = OrderedDict()
        self._waiting: OrderedDict[Notice, None] = OrderedDict()

    def hold(self, notice: Notice, holds: Callable[[], bool]) -> None:
        """Keep a notice for later processes, while `holds` returns True."""
        self._held[notice] = holds
        self._held.move_to_end(notice)
        if len(self._held) > _MOST_HELD:
            self._forget(next(iter(self._held)))

    def wait(self, notice: Notice) -> None:
        """Keep a notice that nobody was there to be told for the next process whom it concerns."""
        self._waiting[notice] = None
        if len(self._waiting) > _MOST_HELD:
            self._waiting.popitem(last=False)

    def tell(self, notice: Notice, process: Hashable) -> None:
        """Note that this process was just told."""
        if notice in self._held:
            self._known(process).add(notice)

    def owed(self, process: Hashable, model: str) -> list[Notice]:
        """The notices due to a process that asks this model; they count as told then."""
        for notice in [notice for notice, holds in self._held.items() if not holds()]:
            self._forget(notice)
        known = self._known(process)
        owed = [n for n in self._held if n.concerns(model) and n not in known]
        known.update(owed)
        waited = [n for n in self._waiting if n.concerns(model)]
        for notice in waited:
            del self._waiting[notice]
        return waited + owed

    def _known(self, process: Hashable) -> set[Notice]:
        known = self._told.setdefault(process, set())
        self._told.move_to_end(process)
        if len(self._told) > _MOST_PROCESSES:
            self._told.popitem(last=False)
        return known

    def _forget(self, notice: Notice) -> None:
        del self._held[notice]
        for known in self._told.values():
            known.discard(notice)
