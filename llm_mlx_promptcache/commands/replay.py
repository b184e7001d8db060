"""A trace replayed at this machine's budgets: the hits of our order, beside LRU's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from ..cache.memory.order import CacheOrder
from ..cache.memory.simulation import TracedPath, hit_ratio, most_hits
from ..cache.sizes import format_size
from ..cache.traces import block_size, read_trace
from .shown import counted

_ORDERS = {"ours": "default", "lru": "lru"}  # of CacheOrder, by their names here


class CacheBudget(NamedTuple):
    """The limit of a cache in bytes, and where it is."""

    where: str
    bytes: int


class BudgetReplay(NamedTuple):
    """A trace in a cache of a budget: the share of its blocks that were there when asked for."""

    where: str
    bytes: int
    blocks: int
    ours: float
    lru: float


class TraceReplay(NamedTuple):
    """A trace: the size of its blocks here, the hits at each budget, and the most possible.

    `per_token` is bytes; `most` is the share that a cache without a limit finds.
    """

    model: str
    requests: int
    blocks: int
    distinct: int
    block: int
    per_token: float
    most: float
    budgets: list[BudgetReplay]


class TokenCost(NamedTuple):
    """The memory of a model's rows: bytes a token."""

    model: str
    per_token: float


def trace_paths(trace: Path, block: int | None) -> tuple[list[TracedPath], int]:
    """The prompts of a trace, as they came, and the tokens of its blocks; ValueError.

    Lines of the same time stay in the file's order: some traces tell no times.
    """
    with trace.open("rb") as file:
        requests = sorted(read_trace(file, str(trace)), key=attrgetter("timestamp"))
    block = block or block_size(requests)
    if block is None:
        raise ValueError(f"{trace} does not say how many tokens a block has; give --block")
    return [request.path for request in requests], block


def replay(
    paths: Sequence[TracedPath], block: int, cost: TokenCost, budgets: Sequence[CacheBudget]
) -> TraceReplay:
    """Play a trace through our order and through LRU, once for each budget."""
    found = []
    for where, size in budgets:
        blocks = int(size / (cost.per_token * block))
        ratios = {
            name: hit_ratio(paths, blocks, CacheOrder(policy=policy))
            for name, policy in _ORDERS.items()
        }
        found.append(BudgetReplay(where, size, blocks, **ratios))
    asked = [id for path in paths for id in path.blocks]
    counts = len(paths), len(asked), len(set(asked))
    return TraceReplay(cost.model, *counts, block, cost.per_token, most_hits(paths), found)


def replay_table(done: TraceReplay) -> str:
    """Markdown: a line for each budget."""
    lines = [
        "| cache | budget | blocks | ours | LRU | ours / LRU | no limit |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for one in done.budgets:
        ratio = f"{one.ours / one.lru:.3f}" if one.lru else "-"
        lines.append(
            f"| {one.where} | {format_size(one.bytes)} | {one.blocks:,} | {one.ours:.3f}"
            f" | {one.lru:.3f} | {ratio} | {done.most:.3f} |"
        )
    lines += [
        "",
        f"The share of {counted(done.blocks, 'block', ',')} of {counted(done.block, 'token')} that"
        f" was there when asked for: {counted(done.requests, 'prompt', ',')},"
        f" {counted(done.distinct, 'different block', ',')}. A token of {done.model} takes"
        f" {format_size(done.per_token)} here.",
    ]
    return "\n".join(lines)


def replay_json(done: TraceReplay) -> str:
    """The same as data."""
    plain: dict[str, Any] = {**done._asdict(), "budgets": [one._asdict() for one in done.budgets]}
    return json.dumps(plain, indent=1)
