"""The times at which packs are made: on request, while nobody waits, and once much of one is dead.

`chains.py` chooses the files of a pack and `compaction.py` makes it; here the work is begun,
suspended and reported.
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

    The steps may go on later, or not at all: everything stays whole. Nothing is written while the
    folder's `faults` pause, and errors are reported to them.
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
        """Pack the files that can be; yields the progress. `rested` as in `DiskStore.compact`."""
        now = int(self._files.now())
        most = min(MOST_PACK, self._upkeep.most // BUDGET_SHARE)
        before = now if rested is None else int(now - rested)
        thrift = Thrift(most, before, rested is not None, now - CODED_AFTER)
        self._upkeep.write_notes()
        wasteful = self._compaction.wasteful(every=rested is None)
        yield from self._packed(chain(wasteful, self._compaction.chains(thrift)))
        self._upkeep.write_notes()  # of files that were found damaged: the process may end here

    def rewrite_wasteful(self) -> bool:
        """Take a step in writing mostly dead packs anew; False if none is left."""
        return self._rewriting.step(self._wasteful_steps)

    def reclaim(self) -> None:
        """Remove from packs all bytes of removed spans, or whole packs."""
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
        """Take the next step of the work, or begin it; False if nothing is left to do."""
        if self._process != os.getpid():  # the parent's work is the parent's alone
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
