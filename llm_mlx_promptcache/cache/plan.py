"""Plans for a prompt from the spans in memory and the store along it, before anything is read."""

from __future__ import annotations

from typing import Final, NamedTuple

from .disk.restore import Reading, Restore, outline_of_checkpoint, read_checkpoint
from .layers import layout as layouts
from .layers.checkpoints import outline_from, resumed_at
from .layers.layout import PathPart
from .span import Query, StoredPath
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
    candidates = []
    for checkpoint in [c for c in stored.checkpoints if resume_at < c.end <= end]:
        outline = outline_of_checkpoint(store, query, checkpoint)
        if outline is not None:
            beyond = outline_from(layout, outlined, checkpoint.end, outline)
            candidates.append((layouts.resumable(layout, beyond, end), checkpoint))
    # The one from which a path gets furthest; of these the last, which leaves least to join.
    candidates.sort(key=lambda candidate: (candidate[0], candidate[1].end), reverse=True)
    for further, checkpoint in candidates:
        extra = read_checkpoint(store, query, checkpoint)
        if extra is not None:
            at = checkpoint.end
            parts = parts + restore.streamed(further)
            before = [part for part in parts if part.start < at]
            first_starts = (starts + restore.starts)[: len(before)]
            stitched = resumed_at(layout, before, first_starts, at, extra)
            whole = stitched + parts[len(before) :]
            return Plan(whole, further, matched, reached, restore, stitched=True)
    return Plan(parts + restore.streamed(resume_at), resume_at, matched, reached, restore)


def _opened(
    store: Store, query: Query, reached: int, stored: StoredPath
) -> tuple[Restore, StoredPath]:
    """The files beyond token `reached`, and the spans in them.

    If one is gone since the path was looked up, its bytes may be in a pack by now.
    """
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
    return restore, stored
