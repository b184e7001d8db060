"""DiskStore: spans as files with an index beside them, in a folder that several processes share.

A stored span hangs on its parent at any token, not only at the parent's end, so a path that
leaves another in the middle of a file needs no rewriting: files and rows never change. Whatever
fails here is a miss (law 7). Format, budget and faults: docs/disk.md.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from . import sweep
from .budget import Below, Chosen, Excess, FolderBudget, Removal, Removed
from .files import Files
from .index import Index, Totals
from .layers import Layout, layout_from_json, layout_to_json
from .listing import Listing
from .shared_index import SPANS, SharedIndex
from .span_file import SUFFIX, DamagedSpan, Draft, Head, OpenSpan, write_span
from .store import NOTHING, Found, NullStore, Store, StoredSpan
from .tiers import TIERS
from .trie import Tokens, common_prefix

__all__ = ["DiskStore", "NullStore", "Store", "StoredSpan"]

_log = logging.getLogger(__name__)

_SWEEP_SECONDS: Final = 3600
_STEPS: Final = 16  # of eviction that one save waits for
_YIELD_SECONDS: Final = 0.002


class DiskStore:
    """Spans in a folder.

    `max_bytes` bounds all of its files, whoever writes them; without it they stay below 20 GB and
    a tenth of the free space. Spans that were not used for `max_days` go.
    """

    def __init__(
        self,
        folder: str | Path,
        max_bytes: int | str | None = None,
        *,
        max_days: float | None = None,
        tiers: Sequence[str] = TIERS,
        files: Files | None = None,
    ) -> None:
        self.folder = Path(folder)
        self._budget = FolderBudget(max_bytes)
        self._max_days = _checked_days(max_days)
        self._tiers = tuple(tiers)
        self._files = files or Files()
        self._labels: dict[str, str] = {}
        self._index = SharedIndex(self.folder, self._files, self._tiers)
        self._written = 0
        self._full = False

    @property
    def spans_folder(self) -> Path:
        """Where the spans' files lie."""
        return self.folder / SPANS

    # Looking up and reading.

    def layout(self, namespace: str) -> Layout | None:
        """The kinds of layer that a namespace's spans hold, where it has any."""
        found = self._index.run(lambda index: index.layout(namespace), None)
        with suppress(ValueError):  # of kinds that nobody brings any more
            return layout_from_json(found) if found is not None else None
        return None

    def lookup(self, namespace: str, tokens: Tokens[int]) -> Found:
        """What is stored along `tokens`, from the path's start."""
        return self._index.run(lambda index: index.walk(namespace, tokens), NOTHING)

    def open(self, namespace: str, span: StoredSpan, tokens: Tokens[int]) -> OpenSpan | None:
        """A span's file, checked as far as its head goes; None where it is gone or not whole."""
        try:
            opened = OpenSpan(self._path(span.stem), self._files)
        except FileNotFoundError:  # evicted by another process
            self._remove_rows(Below(span.stem))
            return None
        except (OSError, DamagedSpan) as error:
            self.damaged(span, error)
            return None
        head, length = opened.head, span.end - span.start
        shared = common_prefix(head.tokens, tokens, 0, span.start)
        # The index finds, the tokens decide (law 5).
        if (head.namespace, head.start) != (namespace, span.start) or shared < length:
            opened.close()
            self.damaged(span, DamagedSpan(f"{span.stem} is not the span that its row says"))
            return None
        return opened

    def damaged(self, span: StoredSpan, error: Exception) -> None:
        """A span turned out not to be what was written: it goes, with all that hangs on it."""
        _log.warning("a stored span is left out: %s", error)
        self._remove_rows(Below(span.stem))

    def used(self, spans: Sequence[StoredSpan]) -> None:
        """A fetch went on from these."""

        def touch(index: Index) -> None:
            with index.transaction():
                index.touch([span.stem for span in spans], int(self._files.now()))

        self._index.run(touch, None)

    # Writing.

    def save(self, draft: Draft) -> bool:
        """Store a span whose path is stored up to its start; any thread may call this."""
        place = self._index.run(lambda index: self._place(index, draft), None)
        # What is larger than the budget would push out all the rest for nothing (law 10).
        if place is None or self._full or draft.nbytes > self.budget:
            return False
        tokens = draft.path[draft.start :]
        head = Head(
            namespace=draft.namespace,
            parent=place,
            start=draft.start,
            tier=draft.tier,
            layout=draft.layout,
            tokens=tokens,
            resumes=draft.resumes,
        )
        try:
            stem, size = write_span(self.spans_folder, head, draft.tensors, self._files)
        except FileNotFoundError:  # cleared by another process in the meantime
            return False
        except OSError as error:
            self._stop_writing(error)
            return False
        added = self._index.run(lambda index: self._add(index, stem, size, head), False)
        if added:
            self._written += size
            self._keep_budget()
            self._tidy()
        else:  # another process stored the same meanwhile, or evicted the parent
            self._remove([stem])
        return added

    def pin(self, namespace: str, tokens: Tokens[int], pinned: bool) -> bool:
        """Keep what is stored along a path from being evicted, or no longer; whether any is."""

        def mark(index: Index) -> bool:
            found = index.walk(namespace, tokens)
            if found.end < len(tokens):
                return False
            ends = [c for c in found.checkpoints if c.end == len(tokens)] + found.spans[-1:]
            with index.transaction():
                return sum(index.pin(span.stem, pinned) for span in ends) > 0

        return self._index.run(mark, False)

    def label(self, namespace: str, name: str) -> None:
        """What people call the model of a namespace."""
        self._labels[namespace] = name

    # Counting and cleaning.

    @property
    def budget(self) -> int:
        """Bytes that all files of the folder may have."""
        held = self._index.run(lambda index: index.totals().bytes, 0)
        return self._budget.most(held, self._room)

    def stats(self) -> dict[str, int]:
        """Spans, tokens and bytes held, bytes written by this process, and the budget."""
        held = self._index.run(lambda index: index.totals(), Totals(0, 0, 0, 0, 0))
        return {
            "spans": held.spans,
            "tokens": held.tokens,
            "bytes": held.bytes,
            "written": self._written,
            "budget": self.budget,
        }

    def by_model(self) -> list[tuple[str, int, int]]:
        """A model's name, and the spans and bytes that are stored of it; the largest first."""
        return self._index.run(lambda index: index.by_model(), [])

    def listing(self) -> Listing:
        """All that is stored, as a tree, at this moment."""
        return Listing.of(self._index.run(lambda index: index.listed(), []), self._tiers)

    def check(self, fix: bool = False) -> list[str]:
        """What is wrong, a line each (law 3); with `fix` what can't be read goes."""
        if not self.folder.exists():
            return []

        def look(index: Index) -> list[str]:
            return list(sweep.check(index, self.spans_folder, self._files))

        nothing: list[str] = []
        found = self._index.run(look, nothing)
        if self._index.off:
            return [f"the folder {self.folder} can't be used"]
        if found and fix:
            self._fix()
        return found

    def sweep(self, every: bool = False) -> int:
        """Drop what a killed process left; returns how many files and rows."""
        spans, files = self.spans_folder, self._files
        return self._index.run(lambda index: sweep.sweep(index, spans, files, every), 0)

    def clear(self, *, model: str | None = None, days: float | None = None) -> int:
        """Remove what is stored, of one model or unused for days if said; returns bytes freed.

        Other processes may go on meanwhile; foreign files stay.
        """
        if not self.folder.exists():
            return 0
        if model is not None or days is not None:
            return self._clear_some(model, days)
        freed = self._index.run(self._wipe, None)
        if freed is None and not self._index.off:
            _log.warning("%s is not cleared: its index is locked; try again", self.folder)
        with suppress(OSError):
            self._index.set_aside.unlink()
        return freed or 0

    def close(self) -> None:
        """Let go of the index; the next call opens it again."""
        self._index.close()

    # With the index.

    def _place(self, index: Index, draft: Draft) -> str | None:
        """The stem of the parent under which a span can be stored; None where it can't."""
        found = index.walk(draft.namespace, draft.path)
        if draft.start == len(draft.path):
            known = [c for c in found.checkpoints if c.end == draft.start]
            return None if found.end < draft.start or known else found.spans[-1].stem
        if found.end != draft.start:
            return None
        return found.spans[-1].stem if found.spans else ""

    def _add(self, index: Index, stem: str, size: int, head: Head) -> bool:
        row = sweep.row_of(stem, size, head, self._files, self._tiers)
        layout = json.dumps(layout_to_json(head.layout))
        with index.transaction():
            return index.add(row, layout, self._labels.get(head.namespace, ""))

    def _keep_budget(self) -> bool:
        """Evict towards the budget and the disk's watermark, in steps; False if there is more."""
        held = self._index.run(lambda index: index.totals().bytes, 0)
        most = min(self._budget.most(held, self._room), held - self._budget.lacking(self._room))
        return held <= most or self._remove_rows(Excess(most), _STEPS) is not None

    def _tidy(self) -> None:
        """Now and then: sweep, and drop what is too old."""
        now = int(self._files.now())
        swept = self._index.run(lambda index: index.totals().swept, now)
        if 0 <= now - swept < _SWEEP_SECONDS:
            return

        def begin(index: Index) -> None:
            with index.transaction():
                index.swept(now)

        self._index.run(begin, None)
        self.sweep()
        if self._max_days is not None:
            self._clear_some(None, self._max_days)

    def _clear_some(self, model: str | None, days: float | None) -> int:
        before = None if days is None else int(self._files.now() - days * 86400)
        nothing: list[str] = []
        namespaces = self._index.run(lambda index: index.matching(model), nothing)
        freed = self._remove_rows(Chosen(namespaces, before)) or 0
        if freed:
            self._index.run(self._shrink, None)
        return freed

    def _remove_rows(self, removal: Removal, most: int | None = None) -> int | None:
        """Take the steps of a removal, at most so many; bytes freed, None where there is more.

        Rows go first and their files then, so that nobody looks for a file without a row.
        """

        def step(index: Index) -> Removed:
            with index.transaction():
                found = removal.step(index)
            index.trim_log()
            return found

        freed = taken = 0
        while most is None or taken < most:
            removed = self._index.run(step, None)
            if removed is None:  # locked: the rest waits for the next time
                return None
            self._remove(removed.stems)
            freed, taken = freed + removed.nbytes, taken + 1
            if removed.done:
                return freed
            time.sleep(_YIELD_SECONDS)  # others have been waiting for the index
        return None

    def _wipe(self, index: Index) -> int:
        freed = 0
        with index.transaction():
            index.wipe()
        names = self._files.names(self.spans_folder)
        ours = [stem + SUFFIX for stem in sweep.stems_in(names)]
        for name in [*ours, *filter(sweep.is_temporary, names)]:
            path = self.spans_folder / name
            with suppress(OSError):
                freed += path.lstat().st_size
                self._files.unlink(path)
        self._shrink(index)
        return freed

    def _shrink(self, index: Index) -> None:
        if why := index.shrink():
            _log.warning(
                "tokens may be left in the index's log in %s (%s); clear again when that is over",
                self.folder,
                why,
            )

    def _fix(self) -> None:
        def unreadable(index: Index) -> list[str]:
            return list(sweep.unreadable(index, self.spans_folder, self._files))

        nothing: list[str] = []
        for stem in self._index.run(unreadable, nothing):
            self._remove_rows(Below(stem))
        self.sweep(every=True)
        if wrong := self._index.run(lambda index: list(index.check()), nothing):
            self._index.put_aside(sqlite3.DatabaseError(wrong[0]))

    def _remove(self, stems: Sequence[str]) -> None:
        for stem in stems:
            with suppress(OSError):
                self._files.unlink(self._path(stem))

    def _path(self, stem: str) -> Path:
        return self.spans_folder / (stem + SUFFIX)

    def _room(self) -> tuple[int, int]:
        with suppress(OSError):
            return self._files.room(self.folder)
        return 0, 0

    def _stop_writing(self, error: OSError) -> None:
        if not self._full:
            self._full = True
            _log.warning("nothing more is written to the disk cache in %s: %s", self.folder, error)


def _checked_days(days: float | None) -> float | None:
    if days is not None and (isinstance(days, bool) or not days > 0):
        raise ValueError(f"max_days is {days!r}; give days above 0, or None for any age")
    return days
