"""DiskStore: spans as files with an index beside them, in a folder that several processes share.

A stored span hangs on its parent at any token, not only at the parent's end, so a path that leaves
another in the middle of a file needs no rewriting: files and rows never change. Any failure here is
a miss (law 7). Format, budget and faults: docs/disk.md.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..layers.errors import UnknownKind
from ..span import NOTHING, DamagedSpan, Head, NewSpan, StoredPath, StoredSpan
from ..trie import Tokens, common_prefix
from ..worth import TIERS
from . import content
from .checkup import Checkup
from .faults import Faults
from .files import Files
from .folder import StoreFolder
from .index import Index
from .index_rows import Totals
from .listing import Listing
from .notes import Notes, Opened
from .packing import Packer
from .pins import Pins
from .publisher import Publisher
from .said import said_behind
from .shared_index import SharedIndex
from .upkeep import Upkeep
from .wipe import wiped
from .witness import Witness

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..layers.layout import Layout
    from ..store import EvictionWatch
    from .compaction import Compacted
    from .span_file import OpenSpan

T = TypeVar("T")
_log = logging.getLogger(__name__)


class DiskStore:
    """Spans in a folder.

    `max_bytes` limits all of its files, whichever process writes them; without it they stay below
    20 GB and a tenth of the free space. Spans unused for `max_days` are removed.
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
        self.folder = Path(folder).absolute()  # wherever the process goes later
        self._files = files or Files()
        self._folder = StoreFolder(self.folder, self._files, tuple(tiers))
        self._notes = Notes()
        self._pins = Pins(self._folder)
        self._index = SharedIndex(self._folder, self._pins)
        self._witness = Witness(self._folder, self._pins)
        self._upkeep = Upkeep(
            self._folder, self._index, self._notes, self._witness, max_bytes, max_days
        )
        self._checkup = Checkup(self._folder, self._index, self._pins, self._witness, self._upkeep)
        self._faults = Faults(self._folder, self._notes)
        self._packer = Packer(self._folder, self._index, self._upkeep, self._faults)
        self._publisher = Publisher(
            self._folder, self._index, self._notes, self._witness, self._upkeep, self._faults
        )

    @property
    def spans_folder(self) -> Path:
        """The folder of the spans' files."""
        return self._folder.spans

    # Looking up and reading.

    def layout(self, namespace: str) -> Layout | None:
        """The kinds of layer in a namespace's spans, if it has any."""
        found = self._index.look(lambda index: index.namespaces.layout(namespace), None)
        with suppress(ValueError):  # of kinds that nobody registers any more
            return content.layout_from_text(found) if found is not None else None
        return None

    def lookup(self, namespace: str, tokens: Tokens[int]) -> StoredPath:
        """The stored part of `tokens`, from the path's start."""
        found = self._index.look(lambda index: index.walk(namespace, tokens), NOTHING)
        return self._notes.without_gone(found)

    def said_behind(self, namespace: str, tokens: Tokens[int], most: int) -> Tokens[int]:
        """The tokens that stood behind these last, at most `most`; no use of them is counted.

        Empty if that is not known at once: no other process is waited for.
        """
        return self._index.peek(
            lambda index: said_behind(index, namespace, tokens, most), array("I")
        )

    @property
    def unseen(self) -> bool:
        """True if the last lookup found the index locked, so that the stored spans are unknown."""
        return self._index.unseen

    def open(
        self,
        namespace: str,
        span: StoredSpan,
        tokens: Tokens[int],
        more: Sequence[StoredSpan] = (),
    ) -> OpenSpan | None:
        """A span's file, checked as far as its head goes; None if it is not available.

        `more` spans are in the same file, the rest of one pack on this path.
        """
        try:
            opened = content.opened(self._folder.place(span.file_id, span.pack), self._files)
        except FileNotFoundError:  # evicted by another process, or in a pack by now
            if not self._has_moved(span):
                self._notes.lose(span.file_id, span.pack)
            return None
        except DamagedSpan as error:
            self.damaged(span, error)
            return None
        except (OSError, UnknownKind) as error:
            self.unreadable(error)
            return None
        # The index finds, the tokens decide (law 5).
        heads = opened.heads
        for one in (span, *more):
            head = heads.get(one.file_id)
            if head is None or not _is_found(head, namespace, one, tokens):
                opened.close()
                self._notes.doubt(one.file_id)
                return None
        if self._notes.lacks_ends(span.file_id):
            opened.leave_ends()
        return opened

    def _has_moved(self, span: StoredSpan) -> bool:
        """True if a span's bytes have been moved since."""
        row = self._index.look(lambda index: index.row(span.file_id), None)
        return row is not None and row.pack != span.pack

    def damaged(self, span: StoredSpan, error: DamagedSpan) -> None:
        """Remove a span that was found damaged, with all that hangs on it.

        After DamagedEnds its states and windows alone.
        """
        self._faults.damaged(span, error)

    def unreadable(self, error: Exception) -> None:
        """Report once that something could not be read, by no fault of its own: it stays."""
        self._faults.unreadable(error)

    def used(self, spans: Sequence[StoredSpan]) -> None:
        """Note that a fetch went on from these."""
        self._notes.use(span.file_id for span in spans)

    def label(self, namespace: str, name: str, identity: str = "") -> None:
        """Record the user's name for the model of a namespace.

        Its `identity`, the same under every salt and setting, shows which namespaces nobody can
        open any more.
        """
        self._notes.open(Opened(namespace, name, identity))

    # Writing.

    def watch(self, watch: EvictionWatch) -> None:
        """Tell this one what becomes of spans here, and evict what it prefers to."""
        self._upkeep.watch(watch)

    @property
    def pause(self) -> float:
        """Seconds for which nothing is tried, since another process holds the index; mostly 0."""
        return self._index.locked.pause

    def try_again(self) -> None:
        """End such a pause."""
        self._index.locked.try_again()

    def tend(self) -> bool:
        """Write down lookups' notes, and keep to the budget; False if there is more to do.

        For a thread that nobody waits for.
        """
        self._upkeep.write_notes()
        kept = self._upkeep.keep_budget()
        self._upkeep.tidy()
        return not self._packer.rewrite_wasteful() and kept

    def compact(self, *, rested: float | None = None) -> Iterator[Compacted]:
        """Make packs of files of one path, a read or write of 8 MB at a time; yields the progress.

        A caller may go on later, or not at all: everything stays whole. With `rested`, only spans
        unused for so many seconds are packed, and large files only once that pays.
        """
        return self._packer.steps(rested)

    def save(self, span: NewSpan) -> bool:
        """Store a span whose path is stored up to its start; any thread may call this."""
        if self._faults.pause or not self._index.can_change():
            return False
        self._upkeep.write_notes()
        return self._publisher.publish(span)

    def pin(self, namespace: str, tokens: Tokens[int], *, pinned: bool) -> bool:
        """Keep the spans along a path from being evicted, or no longer; True if there are any."""

        def mark(index: Index) -> bool:
            found = index.walk(namespace, tokens)
            if found.end < len(tokens):
                return False
            ends = [c for c in found.checkpoints if c.end == len(tokens)] + found.spans[-1:]
            with index.transaction():
                listed = self._pins.restored(index)
                changed = sum(index.pin(span.file_id, pinned=pinned) for span in ends) > 0
                if listed:
                    self._pins.keep(index)
            return changed

        return self._index.run(mark, otherwise=False)

    # Counting and cleaning.

    @property
    def budget(self) -> int:
        """Bytes that all files of the folder may have."""
        return self._upkeep.most

    def stats(self) -> dict[str, int]:
        """Spans, tokens and bytes held, bytes written by this process, and the budget.

        Some of the bytes are `dead`: parts of packs whose spans are gone.
        """
        self._upkeep.write_notes()
        held = self._index.look(lambda index: index.totals(), Totals(0, 0, 0, 0, 0, 0))
        return {
            "spans": held.spans,
            "tokens": held.tokens,
            "bytes": held.held,
            "dead": held.dead,
            "written": self._publisher.written,
            "budget": self.budget,
        }

    def by_model(self) -> list[tuple[str, int, int]]:
        """Each model's name, with the spans and bytes stored of it; the largest first."""
        return self._seen(lambda index: index.namespaces.by_model(), [])

    def superseded(self) -> list[tuple[str, int, int]]:
        """As `by_model`, only spans that nobody can open any more; they are evicted first."""
        return self._seen(lambda index: index.namespaces.superseded_by_model(), [])

    def listing(self) -> Listing:
        """All stored spans, as a tree, at this moment."""
        return Listing.of(self._seen(lambda index: index.listed(), []), self._folder.tiers)

    def _seen(self, action: Callable[[Index], T], otherwise: T) -> T:
        """The result of several queries at one moment: others may write in between."""

        def look(index: Index) -> T:
            with index.snapshot():
                return action(index)

        return self._index.run(look, otherwise, asked=True)

    def check(self, *, fix: bool = False, contents: bool = True) -> list[str]:
        """Faults, a line each (law 3); with `fix` they are mended, damaged files removed.

        Without `contents` files are only seen to be there, and not read.
        """
        return self._checkup.lines(fix=fix, contents=contents) if self.folder.exists() else []

    def sweep(self, *, every: bool = False) -> int:
        """Drop a killed process's leftovers; returns the number of files and rows."""
        return self._upkeep.sweep(every=every)

    @property
    def off(self) -> bool:
        """True if the folder can't be used at the moment; a warning told why."""
        return self._index.off

    def clear(self, *, model: str | None = None, days: float | None = None) -> int:
        """Remove stored spans, of one model or unused for days if given; returns bytes freed.

        Other processes may go on meanwhile; foreign files stay.
        """
        if not self.folder.exists():
            return 0
        if model is not None or days is not None:
            self.sweep()  # a killed process's leftovers are taken in, and cleared with the rest
            freed = self._upkeep.clear_some(model, days, asked=True)
            self._packer.reclaim()
        else:
            freed = self._index.run(self._wiped, None, asked=True)
            self._upkeep.wiped()
        if freed is None and not self._index.off:
            _log.warning("%s is not cleared: its index is locked; try again", self.folder)
        if model is None and days is None:
            with suppress(OSError):
                self._folder.set_aside.unlink()
        return freed or 0

    def close(self) -> None:
        """Close the index; the next call opens it again."""
        self._index.close()

    def _wiped(self, index: Index) -> int:
        return wiped(index, self._folder, self._pins, self._upkeep)


def _is_found(head: Head, namespace: str, span: StoredSpan, tokens: Tokens[int]) -> bool:
    """True if a file's head is that of a span that was found along `tokens`.

    Rows hold what was computed of a whole path: so the parent must be the same as well.
    """
    length = span.end - span.start
    if (head.namespace, head.parent, head.start) != (namespace, span.parent, span.start):
        return False
    resumes = head.resumes and len(head.tokens) == length
    shared = common_prefix(head.tokens, tokens, 0, span.start)
    return shared >= length and (resumes or not span.resumes)
