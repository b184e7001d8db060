"""Upkeep of a folder in the background, by the writer's thread or a command.

Notes of lookups are written down, the budget is kept, and now and then old and left-over files are
removed. Each change of the index is a small transaction; none is ever made in a lookup.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import suppress
from typing import Final

from ..span import DamagedSpan
from ..store import Entered, EvictionWatch, NoWatch
from . import salvage, sweep
from .budget import Below, Chosen, Excess, FolderBudget, Removal, Removed
from .damage import DamagedIndex
from .files import is_gone
from .folder import StoreFolder
from .index import Index
from .index_rows import SpanRow
from .notes import Notes
from .shared_index import SharedIndex
from .witness import Witness

_log = logging.getLogger(__name__)

_SWEEP_SECONDS: Final = 3600
_STEPS: Final = 16  # of eviction that one save waits for
_YIELD_SECONDS: Final = 0.002
_USES: Final = 256  # that are counted in one transaction
_MUCH: Final = 16  # more than this part of all bytes is not removed for what the index says alone


class Upkeep:
    """Keeps a folder within its budget and its index true to it."""

    def __init__(
        self,
        folder: StoreFolder,
        index: SharedIndex,
        notes: Notes,
        witness: Witness,
        max_bytes: int | str | None,
        max_days: float | None,
    ) -> None:
        self._folder = folder
        self._index = index
        self._notes = notes
        self._witness = witness
        self._weighed: tuple[int, int] | None = None  # the index whose sizes were looked at
        self._budget = FolderBudget(max_bytes)
        self._max_days = _checked_days(max_days)
        self._watch: EvictionWatch = NoWatch()
        self._told_kept = False
        self._aged = False

    def watch(self, watch: EvictionWatch) -> None:
        """Tell `watch` what becomes of spans, and evict what it prefers; the first one stays."""
        if isinstance(self._watch, NoWatch):
            self._watch = watch

    def entered(self, row: SpanRow, path: bytes) -> None:
        """A span was entered, at the end of a path of this digest."""
        self._watch.stored(
            Entered(row.file_id, row.parent, path, row.tier, len(row.tokens), row.bytes)
        )

    def wiped(self) -> None:
        """All spans were removed."""
        self._watch.removed(None)

    @property
    def most(self) -> int:
        """Bytes that all files of the folder may have."""
        held = self._index.look(lambda index: index.totals().held, 0)
        return self._budget.most(held, self._space)

    def write_notes(self) -> None:
        """Write lookups' notes to the index, in small transactions."""
        noted = self._notes.waiting()

        def write(index: Index) -> bool:
            for first in range(0, len(noted.used), _USES):
                with index.transaction():
                    index.touch(noted.used[first : first + _USES], int(self._folder.files.now()))
            with index.transaction():
                for opened in noted.opened:
                    index.namespaces.name(*opened)
                for identity, label in noted.models:
                    index.namespaces.opened(identity, label)
            return True

        if (noted.used or noted.opened or noted.models) and self._index.run(write, otherwise=False):
            self._notes.written(noted)
            self._watch.used(noted.used)
        for file_id in noted.doubted:
            self._settle(file_id, None)
        for file_id, pack in noted.gone.items():
            self._settle(file_id, pack)
        for file_id in noted.spoiled:
            self.remove_ends(file_id)

    def remove_ends(self, file_id: str, *, asked: bool = False) -> None:
        """Remove a span's damaged states and windows, and no more unless its rows are damaged too.

        Where its file can't be written anew it stays, and lookups here go without them.
        """
        try:
            done = salvage.ends_removed(self._index, self._folder, file_id, asked=asked)
        except DamagedSpan:
            done = self.remove(Below(file_id, self._witness), asked=asked) is not None
        except OSError as error:
            _log.warning("a stored span can't be freed of what is damaged in it: %s", error)
            self._notes.left(file_id)
            return
        if done:
            self._notes.settled(file_id)

    def _settle(self, file_id: str, lost_in: str | None) -> None:
        """Remove a span and all below it, or let it be found again; first its file is asked.

        A lost span is removed unless its bytes have been moved; others if they are damaged.
        """

        def ask(index: Index) -> tuple[str, SpanRow | None]:
            row = index.row(file_id)
            try:
                if row is not None:
                    self._witness.refute(index, row)
                    if is_gone(self._folder.place(file_id, row.pack)):
                        self._witness.refute_gone(row)
            except DamagedIndex as error:
                return str(error), row
            return "", row

        asked = self._index.run(ask, None)
        if asked is None:  # locked
            return
        wrong, row = asked
        lost = row is not None and row.pack == lost_in
        if wrong:
            self._index.put_aside(DamagedIndex(wrong))
        elif (lost or (row is not None and self._witness.is_damaged(row))) and self.remove(
            Below(file_id, self._witness)
        ) is None:
            return
        self._notes.settled(file_id)

    def keep_budget(self) -> bool:
        """Evict towards the budget and the disk's watermark, in steps; False if there is more."""
        held, most = self._held_and_most()
        if held - most > held // _MUCH and self._index.run(self._weigh, otherwise=False):
            held, most = self._held_and_most()
        excess = Excess(most, self._watch.preferred())
        return held <= most or self.remove(excess, _STEPS) is not None

    def _held_and_most(self) -> tuple[int, int]:
        held = self._index.look(lambda index: index.totals().held, 0)
        most = min(self._budget.most(held, self._space), held - self._budget.lacking(self._space))
        return held, most

    def _weigh(self, index: Index) -> bool:
        """Check once for each index that much really is there to remove; True if checked now."""
        if self._weighed == index.inode:
            return False
        self._witness.refute_sizes(index)
        self._weighed = index.inode
        return True

    def tidy(self) -> None:
        """Sweep now and then, and drop spans that are too old."""
        if self._index.look(lambda index: index.log.is_long, otherwise=False):
            self._index.run(lambda index: index.log.trim(), None)
        now = int(self._folder.files.now())
        swept = self._index.look(lambda index: index.totals().swept, now)
        if 0 <= now - swept < _SWEEP_SECONDS:
            return

        def begin(index: Index) -> None:
            with index.transaction():
                index.swept(now)
                index.namespaces.forget_empty()

        self._index.run(begin, None)
        self.sweep()
        if self._max_days is not None:
            self.clear_some(None, self._max_days)
            self._aged = True

    def forgets_age(self) -> bool:
        """True once after old spans were removed, so that no pack is to keep any of them."""
        aged, self._aged = self._aged, False
        return aged

    def clear_some(
        self, model: str | None, days: float | None, *, asked: bool = False
    ) -> int | None:
        """Remove stored spans of one model, or unused for days, or both; returns bytes freed.

        None if the index is locked. If the user `asked`, no token is left behind.
        """
        # Uses are dated in whole seconds: one in the same second counts as before.
        before = None if days is None else math.ceil(self._folder.files.now() - days * 86400)
        nothing: list[str] = []
        namespaces = self._index.run(
            lambda index: index.namespaces.matching(model), nothing, asked=asked
        )
        # A model's name means no other's files, whatever their rows say.
        witness = self._witness if model is not None else None
        freed = self.remove(Chosen(namespaces, before, witness), asked=asked)
        if freed:
            self._index.run(self.shrink if asked else _empty_log, None, asked=asked)
        return freed

    def remove(
        self, removal: Removal, most: int | None = None, *, asked: bool = False
    ) -> int | None:
        """Take the steps of a removal, at most so many; bytes freed, None if there is more.

        Files are removed with their rows, in the same transaction (sweep.py).
        """

        def step(index: Index) -> Removed:
            with index.transaction():
                found = removal.step(index)
                self._witness.refute_pins(found.unpinned)
                self._unlink(found)
            index.log.trim()
            return found

        freed = taken = 0
        while most is None or taken < most:
            removed = self._index.run(step, None, asked=asked)
            if removed is None:  # locked: the rest waits for the next time
                return None
            tell = self._watch.evicted if isinstance(removal, Excess) else self._watch.removed
            tell(removed.file_ids)
            freed, taken = freed + removed.nbytes, taken + 1
            if removed.done:
                return freed
            time.sleep(_YIELD_SECONDS)  # others have been waiting for the index
        return None

    def sweep(self, *, every: bool = False) -> int:
        """Drop a killed process's leftovers; returns the number of files and rows."""

        def swept(index: Index) -> int:
            self._pin_again(index)
            return sweep.sweep(index, self._folder, self._witness, every=every)

        return self._index.run(swept, 0)

    def _pin_again(self, index: Index) -> None:
        """Pin the listed spans: the list may have been unreadable when the index was rebuilt."""
        with index.transaction(), suppress(OSError):
            self._index.pins.into(index)

    def shrink(self, index: Index) -> None:
        """Leave no token in the index's free pages or log, or warn that some may be there."""
        if why := index.log.shrink():
            _log.warning(
                "tokens may be left in the index's log in %s (%s); clear again later",
                self._folder.path,
                why,
            )

    def _unlink(self, removed: Removed) -> None:
        # Of what was in a pack a file of its own is left, maybe, by who was killed in packing it.
        paths = [self._folder.span(file_id) for file_id in removed.file_ids]
        for path in (*paths, *(self._folder.pack(pack) for pack in removed.packs)):
            try:
                self._folder.files.unlink(path)
            except OSError as error:
                if not path.is_dir():  # a folder holds nothing that we wrote, and stays
                    self.not_removed(error)

    def not_removed(self, error: OSError) -> None:
        """Report once that a file can't be removed; a sweep finds it again."""
        if not self._told_kept:
            self._told_kept = True
            _log.warning(
                "a file in %s could not be removed; a later sweep tries again: %s",
                self._folder.spans,
                error,
            )

    def _space(self) -> tuple[int, int]:
        with suppress(OSError):
            return self._folder.files.space(self._folder.path)
        return 0, 0


def _empty_log(index: Index) -> None:
    # Rows that were removed are zeros in the file; in the log they are not.
    index.wait_for_locks(0.0)
    index.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _checked_days(days: float | None) -> float | None:
    if days is not None and (isinstance(days, bool) or not days > 0):
        raise ValueError(f"max_days is {days!r}; give days above 0, or None for any age")
    return days
