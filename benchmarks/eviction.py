"""Block hit ratio of every eviction policy on a trace, beside the clairvoyant optimum.

    python benchmarks/eviction.py TRACE [--capacities 500,1000,...] [--half first|second]
    python benchmarks/eviction.py --synthetic chats [--seed 1]
    python benchmarks/eviction.py --sharegpt ShareGPT_V3_unfiltered_cleaned_split.json

TRACE is in Mooncake's format (one JSON object a line, `hash_ids` an id for each block of a
prompt); ShareGPT's conversations are made into one, with tiers by author. A request hits its
longest run of blocks that are there, and the rest is stored; its own path stays while it runs,
and a block goes only after all that hang on it. The orders are the project's own `CacheOrder`,
driven as the cache drives it: the default, which follows `history` or `recency`, those two
alone, and what the disk goes by. What was tried and the optimum (Belady) are policies for that same
order. The optimum alone may drop what it has just stored.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

from eviction_traces import SYNTHETIC, mooncake
from sharegpt import sharegpt

from llm_mlx_promptcache.cache.disk_order import GuardedRows
from llm_mlx_promptcache.cache.memory.order import POLICIES, CacheOrder
from llm_mlx_promptcache.cache.memory.policies import Entry, Heads, PastUse, Policy, Recency
from llm_mlx_promptcache.cache.memory.simulation import OwnPath, TracedPath, hit_ratio

NEVER = 1 << 60
CAPACITIES = "500,1000,2000,5000,10000,20000"
SYNTHETIC_CAPACITIES = "300,1000,3000,10000"


class Lfu(Policy):
    """Least used since stored, then least recently used."""

    def rank(self, entry: Entry[Any]) -> float:
        """Uses, then recency as a fraction."""
        return entry.uses + entry.last_used / NEVER


class Segmented(Policy):
    """Two segments (SLRU): blocks used again are evicted after all that were not."""

    def bucket(self, entry: Entry[Any]) -> Hashable:
        """True if it was used again."""
        return entry.uses > 0

    def choose(self, heads: Heads, now: int, counts: Sequence[int]) -> Hashable:
        """The blocks not used again, while there are any."""
        return min(heads)


class Hyperbolic(Policy):
    """Uses for each tick since the last one; no other knowledge."""

    def bucket(self, entry: Entry[Any]) -> Hashable:
        """The number of its uses."""
        return entry.uses

    def choose(self, heads: Heads, now: int, counts: Sequence[int]) -> Hashable:
        """The head with the fewest uses for its age."""
        return min(heads, key=lambda uses: (uses + 1) / (now - heads[uses].last_used + 1))


class Unlearned(PastUse):
    """History with a bias that stays where it starts."""

    STEP = 0.0


class Alike(Unlearned):
    """History without regard to what came back: tiers, recency, work and bytes."""

    START = 0.0


class OneTier(PastUse):
    """History without regard to tiers: what came back, recency, work and bytes."""

    def weight(self, tier: int, *, returned: bool) -> float:
        """As of the least persistent tier."""
        return super().weight(0, returned=returned)


class UsedBefore(Unlearned):
    """The disk's first rule: tiers, and a fixed bias for all that was found once."""

    def bucket(self, entry: Entry[Any]) -> Hashable:
        """All that it compares but the age."""
        return entry.uses > 0, entry.tier, 0


class Belady(Policy):
    """The optimum: the block whose next use is furthest away is evicted."""

    def __init__(self, trace: list[TracedPath]) -> None:
        self._next: list[dict[int, int]] = [{} for _ in trace]
        seen: dict[int, int] = {}
        for at in range(len(trace) - 1, -1, -1):
            self._next[at] = {block: seen.get(block, NEVER) for block in trace[at].blocks}
            seen |= dict.fromkeys(trace[at].blocks, at)

    def rank(self, entry: Entry[Any]) -> float:
        """The sooner it is used again, the later it is evicted."""
        return -self._next[entry.last_used][entry.item]


TRIED: dict[str, Callable[[], Policy]] = {
    "lfu": Lfu,
    "segmented": Segmented,
    "hyperbolic": Hyperbolic,
    "bias fixed": Unlearned,
    "no bias": Alike,
    "no tiers": OneTier,
    "used before": UsedBefore,
}


def measure(trace: list[TracedPath], capacities: list[int], tried: bool) -> dict[str, list[float]]:
    """Hit ratios by policy, one for each capacity."""
    makers: dict[str, Callable[[], Policy]] = {name: POLICIES[name] for name in sorted(POLICIES)}
    makers |= {"recency": Recency, "history": PastUse, "disk": GuardedRows} | (
        TRIED if tried else {}
    )
    optimum = Belady(trace)
    ratios: dict[str, list[float]] = {}
    for name, make in makers.items():
        ratios[name] = [hit_ratio(trace, c, CacheOrder(policy=make())) for c in capacities]
    ratios["belady"] = [
        hit_ratio(trace, c, CacheOrder(policy=optimum), OwnPath.LOOSE) for c in capacities
    ]
    return ratios


def table(ratios: dict[str, list[float]], capacities: list[int]) -> str:
    """A Markdown table, a line for each capacity: hit ratios, and the default's beside LRU's."""
    names = [*ratios, "default / lru", "default / mlx-lm"]
    lines = [f"| blocks | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for at, capacity in enumerate(capacities):
        row = [f"{ratios[name][at]:.4f}" for name in ratios]
        for other in ("lru", "mlx-lm"):
            row.append(f"{ratios['default'][at] / max(ratios[other][at], 1e-9):.3f}")
        lines.append(f"| {capacity:,} | {' | '.join(row)} |")
    return "\n".join(lines)


def main() -> None:
    """Read the arguments, print the table."""
    parser = argparse.ArgumentParser(description="Block hit ratios of the eviction policies.")
    parser.add_argument("trace", nargs="?", type=Path, help="a trace in Mooncake's format")
    parser.add_argument("--synthetic", choices=SYNTHETIC, help="a generated trace instead")
    parser.add_argument("--sharegpt", type=Path, help="conversations as ShareGPT's file has them")
    parser.add_argument("--one-tier", action="store_true", help="no tiers, as in public traces")
    parser.add_argument("--requests", type=int, default=6000, help="of the generated trace")
    parser.add_argument("--seed", type=int, default=0, help="of the generated trace")
    parser.add_argument("--half", choices=("first", "second"), help="only this half of the trace")
    parser.add_argument("--tried", action="store_true", help="also what was tried and not kept")
    parser.add_argument("--capacities", help=f"in blocks (default {CAPACITIES})")
    parser.add_argument("--json", type=Path, help="also write the hit ratios there")
    options = parser.parse_args()
    if sum(map(bool, (options.trace, options.synthetic, options.sharegpt))) != 1:
        parser.error("give one of TRACE, --synthetic and --sharegpt")
    capacities = options.capacities or CAPACITIES
    if options.synthetic:
        made = SYNTHETIC[options.synthetic](options.requests, options.seed)
        trace = [TracedPath(*request) for request in made]
        capacities = options.capacities or SYNTHETIC_CAPACITIES
    elif options.sharegpt:
        trace = sharegpt(options.sharegpt, options.seed)
    else:
        trace = mooncake(options.trace)
    if options.one_tier:
        trace = [TracedPath(blocks, ["assistant"] * len(blocks)) for blocks, _ in trace]
    middle = len(trace) // 2
    trace = {"first": trace[:middle], "second": trace[middle:]}.get(options.half, trace)
    start, sizes = time.perf_counter(), [int(size) for size in capacities.split(",")]
    blocks = [block for request in trace for block in request.blocks]
    print(f"{len(trace):,} requests, {len(blocks):,} blocks, {len(set(blocks)):,} distinct\n")
    ratios = measure(trace, sizes, options.tried)
    print(table(ratios, sizes))
    if options.json is not None:
        options.json.write_text(json.dumps({"blocks": sizes, "ratios": ratios}, indent=1))
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
