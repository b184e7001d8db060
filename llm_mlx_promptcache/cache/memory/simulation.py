"""A trace of prompts played through an order, block by block, as the cache drives it; no MLX."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from .order import CacheOrder
from .policies import Entry


class TracedPath(NamedTuple):
    """The blocks of one prompt, from the root, and their tiers.

    A block's id stands for the whole path to its end.
    """

    blocks: Sequence[int]
    tiers: Sequence[str]


class OwnPath(Enum):
    """The treatment of a prompt's own path while it runs."""

    HELD = "it stays, as a lease holds it"
    LOOSE = "it may be evicted with it, as only who knows the future would"


def hit_ratio(
    trace: Sequence[TracedPath],
    capacity: int,
    order: CacheOrder[int],
    own: OwnPath = OwnPath.HELD,
) -> float:
    """The part of all blocks that was there when asked for, of a cache of so many blocks.

    A prompt hits its longest run of blocks that are there, and the rest is stored.
    """
    resident: dict[int, Entry[int]] = {}
    hits = 0
    for at, request in enumerate(trace):
        order.now = at
        path = _hit(request, resident)
        hits += len(path)
        order.use(path)
        order.touch(path)  # the insert after the answer passes over them
        parent = path[-1] if path else None
        for block, tier in list(zip(*request, strict=True))[len(path) :]:
            parent = resident[block] = order.push(block, tier, 1, 1, parent, key=block)
        if parent is not None and own is OwnPath.HELD:
            order.hold(parent)
            _evict(order, resident, capacity)
            order.release(parent)
        _evict(order, resident, capacity)  # a path that is longer than the cache
    assert len(order) == len(resident) <= capacity
    return hits / max(1, sum(len(request.blocks) for request in trace))


def most_hits(trace: Sequence[TracedPath]) -> float:
    """The hit ratio of a cache without a limit."""
    seen: set[int] = set()
    hits = 0
    for request in trace:
        for at, block in enumerate(request.blocks):
            if block not in seen:
                seen.update(request.blocks[at:])
                break
            hits += 1
    return hits / max(1, sum(len(request.blocks) for request in trace))


def _hit(request: TracedPath, resident: dict[int, Entry[int]]) -> list[Entry[int]]:
    path = []
    for block in request.blocks:
        entry = resident.get(block)
        if entry is None:
            break
        path.append(entry)
    return path


def _evict(order: CacheOrder[int], resident: dict[int, Entry[int]], capacity: int) -> None:
    while len(order) > capacity and (victim := order.pop()) is not None:
        del resident[victim.item]
