"""When packs are made: at once, while nobody waits, and where much of one is dead.

What may become a pack is `chains.py`'s to say and how it is made `compaction.py`'s; here it is
begun, left off and told.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from ..layers.errors import UnknownKind
from .budget import Below
from .chains import BUDGET_SHARE, CODED_AFTER, MOST_PACK, ChainFile, Thrift
from .compaction import Compacted, Compaction, DamagedSource

if TYPE_CHECKING:
    from collections.abc import Callable

    from .faults import Faults
    from .folder import StoreFolder
    from .shared_index import SharedIndex
    from .upkeep import Upkeep


class Packer:
    """A folder's files, packed a read or write of 8 MB at a time.

    Who goes on later with the steps, or not at all, leaves everything whole. Nothing is written
    while the folder's `faults` pause, and what goes wrong is theirs.
    """

    def __init__(
        self, folder: StoreFolder, index: SharedIndex, upkeep: Upkeep, faults: Faults
    ) -> None:
        self._files = folder.files
        self._index = index
        self._upkeep = upkeep
        self._faults = faults
        self._compaction = Compaction(folder, index, upkeep)
        self._rewriting = _OneAtATime()

    def steps(self, rested: float | None) -> Iterator[Compacted]:
        """Pack what can be, and what was done so far; with `rested`, as `DiskStore.compact`."""
        now = int(self._files.now())
        most = min(MOST_PACK, self._upkeep.most // BUDGET_SHARE)
        before = now if rested is None else int(now - rested)
        thrift = Thrift(most, before, rested is not None, now - CODED_AFTER)
        self._upkeep.write_notes()
        wasteful = self._compaction.wasteful(every=rested is None)
        yield from self._packed(chain(wasteful, self._compaction.chains(thrift)))

    def rewrite_wasteful(self) -> bool:
        """Take a step in writing packs anew of which much is dead; False where none is left."""
        return self._rewriting.step(self._wasteful_steps)

    def reclaim(self) -> None:
        """Leave nothing in packs of what was removed from them, or nothing of the pack at all."""
        for _ in self._packed(self._compaction.wasteful(every=True)):
            pass
        for units in self._compaction.wasteful(every=True):
            self._upkeep.remove(Below(units[0].links[0].file_id), asked=True)

    def _wasteful_steps(self) -> Iterator[Compacted]:
        if self._index.look(lambda index: index.totals().dead, 0):
            every = self._upkeep.forgets_age()
            yield from self._packed(self._compaction.wasteful(every=every))

    def _packed(self, groups: Iterator[list[ChainFile]]) -> Iterator[Compacted]:
        """Make a pack of each of these; one that can't be made stays as it is."""
        done = Compacted()
        for units in groups:
            if self._faults.pause or self._index.off or not self._index.can_change():
                return
            try:
                coded_before = int(self._files.now()) - CODED_AFTER
                for stands in self._compaction.packed(units, coded_before):
                    done = done.after(units) if stands else done
                    yield done
            except DamagedSource as error:
                self._faults.damaged(error.span, error.error)
            except UnknownKind:
                continue
            except OSError as error:
                self._faults.unwritable(error)
                return


class _OneAtATime:
    """Long work that is done a step at a time, by one thread of the process that began it."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._steps: Iterator[Compacted] | None = None

    def step(self, begin: Callable[[], Iterator[Compacted]]) -> bool:
        """Take the next step of what was begun, or begin; False where nothing is left to do."""
        if self._process != os.getpid():  # what the parent does there is the parent's
            self.__init__()  # type: ignore[misc]
        if not self._lock.acquire(blocking=False):
            return False
        try:
            self._steps = self._steps or begin()
            if next(self._steps, None) is None:
                self._steps = None
            return self._steps is not None
        finally:
            self._lock.release()
