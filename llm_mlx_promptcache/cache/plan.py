"""How far a prompt gets with what memory and the store hold along it, before anything is read."""

from __future__ import annotations

from typing import NamedTuple

from .disk.restore import Restore, outline_of_checkpoint, read_checkpoint
from .layers import layout as layouts
from .layers.checkpoints import outline_from, resumed_at
from .layers.layout import Layout, Part
from .span import Found
from .store import Store
from .trie import Tokens


class Plan(NamedTuple):
    """Parts of a path, where it resumes, up to which token it is known and its spans in memory."""

    parts: list[Part]
    place: int
    matched: int
    in_memory: int
    restore: Restore | None = None
    stitched: bool = False

    @property
    def from_disk(self) -> int:
        """How many tokens before `place` memory does not hold."""
        return 0 if self.restore is None else max(0, self.place - self.in_memory)


def plan(
    store: Store,
    namespace: str,
    layout: Layout,
    ids: Tokens[int],
    held: list[Part],
    reached: int,
    stored: Found,
) -> Plan:
    """A plan out of the parts `held` in memory, which resume at `reached`, and what is `stored`."""
    length = held[-1].end if held else 0
    if stored.end <= reached:
        return Plan(held, reached, length, length)
    parts = [p._replace(end=min(p.end, reached)) for p in held if p.start < reached]
    starts = [part.start for part in parts]
    restore = Restore(store)
    restore.open(namespace, layout, stored.spans, ids, reached)
    outlined = parts + restore.parts
    end = outlined[-1].end if outlined else 0
    count = layouts.resumable(layout, outlined, end)
    matched = max(length, end)
    places = []
    for checkpoint in [c for c in stored.checkpoints if count < c.end <= end]:
        outline = outline_of_checkpoint(store, namespace, layout, checkpoint, ids)
        if outline is not None:
            beyond = outline_from(layout, outlined, checkpoint.end, outline)
            places.append((layouts.resumable(layout, beyond, end), checkpoint))
    # The one from which a path gets furthest; of those the last, behind which least is joined.
    for place, checkpoint in sorted(places, key=lambda found: (found[0], found[1].end))[::-1]:
        extra = read_checkpoint(store, namespace, layout, checkpoint, ids)
        if extra is not None:
            at = checkpoint.end
            parts = parts + restore.streamed(place)
            before = [part for part in parts if part.start < at]
            first_starts = (starts + restore.starts)[: len(before)]
            stitched = resumed_at(layout, before, first_starts, at, extra)
            return Plan(stitched + parts[len(before) :], place, matched, reached, restore, True)
    return Plan(parts + restore.streamed(count), count, matched, reached, restore)
