"""Plans for a prompt from the spans in memory and the store along it, before anything is read."""

from __future__ import annotations

from typing import Final, NamedTuple

from .disk.restore import Reading, Restore, outline_of_checkpoint, read_checkpoint
from .layers import layout as layouts
from .layers.checkpoints import outline_from, resumed_at
from .layers.layout import PathPart
from .span import Query, StoredPath, StoredSpan
from .store import Store

_MOST_LOOKS: Final = 3  # at a path whose files are being packed just now


class Plan(NamedTuple):
    """Parts of a path and where it resumes; up to `matched` the path is known.

    Memory alone holds it up to `in_memory`. A `stitched` path has a checkpoint put into the parts
    before it.
    """

    parts: list[PathPart]
    resume_at: int
    matched: int
    in_memory: int
    restore: Restore | None = None
    stitched: bool = False

    @property
    def from_disk(self) -> int:
        """The number of tokens before `resume_at` that memory does not hold."""
        return 0 if self.restore is None else max(0, self.resume_at - self.in_memory)


def make_plan(
    store: Store, query: Query, held: list[PathPart], reached: int, stored: StoredPath
) -> Plan:
    """A plan from the parts `held` in memory, which resume at `reached`, and the `stored` path."""
    layout = query.layout
    length = held[-1].end if held else 0
    if stored.end <= reached:
        return Plan(held, reached, length, length)
    parts = [part._replace(end=min(part.end, reached)) for part in held if part.start < reached]
    starts = [part.start for part in parts]
    restore, stored = _opened(store, query, reached, stored)
    outlined = parts + restore.parts
    end = outlined[-1].end if outlined else 0
    resume_at = layouts.resumable(layout, outlined, end)
    matched = max(length, end)
    lost = 0  # where the path would resume if all checkpoints could be read
    for further, checkpoint, at_hand in _ways_on(store, query, outlined, resume_at, stored):
        extra = read_checkpoint(store, query, checkpoint) if at_hand else None
        if extra is None:
            lost = max(lost, further)
            continue
        if further < lost:
            restore.lacks_one()
        at = checkpoint.end
        parts = parts + restore.streamed(further)
        before = [part for part in parts if part.start < at]
        first_starts = (starts + restore.starts)[: len(before)]
        stitched = resumed_at(layout, before, first_starts, at, extra)
        whole = stitched + parts[len(before) :]
        return Plan(whole, further, matched, reached, restore, stitched=True)
    if lost:
        restore.lacks_one()
    return Plan(parts + restore.streamed(resume_at), resume_at, matched, reached, restore)


class _WayOn(NamedTuple):
    """A checkpoint with which a path gets `further`; one that is not `at_hand` can't be read."""

    further: int
    checkpoint: StoredSpan
    at_hand: bool


def _ways_on(
    store: Store, query: Query, outlined: list[PathPart], resume_at: int, stored: StoredPath
) -> list[_WayOn]:
    """The checkpoints that get a path beyond `resume_at`, best first.

    Of these with which it gets equally far the last, which leaves least to join.
    """
    end = outlined[-1].end if outlined else 0
    found = []
    for checkpoint in [c for c in stored.checkpoints if resume_at < c.end <= end]:
        outline = outline_of_checkpoint(store, query, checkpoint)
        further = checkpoint.end
        if outline is not None:
            beyond = outline_from(query.layout, outlined, checkpoint.end, outline)
            further = layouts.resumable(query.layout, beyond, end)
        if further > resume_at:
            found.append(_WayOn(further, checkpoint, outline is not None))
    found.sort(key=lambda one: (one.further, one.checkpoint.end), reverse=True)
    return found


def _opened(
    store: Store, query: Query, reached: int, stored: StoredPath
) -> tuple[Restore, StoredPath]:
    """The files beyond token `reached`, and the spans in them.

    If one is gone since the path was looked up, its bytes may be in a pack by now; if they are not,
    the shorter path is no whole one.
    """
    known = stored.end
    for _ in range(_MOST_LOOKS):
        restore = Restore(store, query)
        restore.open(stored.spans, reached)
        if restore.state is Reading.WHOLE:
            break
        found = store.lookup(query.namespace, query.ids)
        if found.spans == stored.spans or found.end <= reached:
            break
        restore.close()
        stored = found
    if stored.end < known:
        restore.lacks_one()
    return restore, stored
