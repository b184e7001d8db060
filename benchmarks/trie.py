"""Our PromptTrie beside mlx-lm's: the time of inserts and searches, and its size.

Prints a Markdown table of medians, with ratios. `--json FILE` also writes the figures. Each
search is for a fresh list of ids, as a tokenizer makes one. mlx-lm's looks up `longer`, the
shortest path that goes on, in every search that misses; ours when it is read, so both are shown.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from mlx_lm.models.cache import PromptTrie as TheirTrie

from llm_mlx_promptcache.cache.compat import PromptTrie as OurTrie

LENGTH = 100_000
PREFIX, BRANCH = 10_000, 2_000
VOCABULARY = 150_000
REPEATS = 9
SLOW_REPEATS = 3  # where one search of mlx-lm's takes seconds
_RANDOM = random.Random(0)

Trie = Any  # both classes have the same methods, and no type in common
Measure = Callable[[type], float]


class Figure(NamedTuple):
    """One measure, of mlx-lm's class and of ours."""

    name: str
    unit: str
    theirs: float
    ours: float

    @property
    def ratio(self) -> float:
        """The factor by which ours takes less."""
        return self.theirs / self.ours


def main() -> int:
    """Measure everything, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    target: Path | None = parser.parse_args().json
    figures = [*long_paths(), *branches(), *growth(), weight()]
    print(table(figures))
    if target is not None:
        rows = [{**figure._asdict(), "ratio": figure.ratio} for figure in figures]
        target.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def long_paths() -> list[Figure]:
    """One path of 100,000 tokens: inserted, found, and missed early and half-way."""
    path = ids(LENGTH)
    early = [path[0], *ids(LENGTH - 1)]
    half = [*path[: LENGTH // 2], *ids(LENGTH // 2)]
    return [
        compared(f"insert {LENGTH:,} tokens", lambda make: insertion(make, path)),
        compared(f"find {LENGTH:,} tokens", lambda make: search(make, [path], path, REPEATS)),
        *missed("find, parting after 1 token", [path], early),
        *missed(f"find, parting after {LENGTH // 2:,}", [path], half),
    ]


def branches() -> list[Figure]:
    """200 paths that share 10,000 tokens and go on for 2,000, and a prompt that parts there."""
    prefix = ids(PREFIX)
    stored = [[*prefix, VOCABULARY + number, *ids(BRANCH - 1)] for number in range(200)]
    name = f"find over 200 branches of {BRANCH:,} on {PREFIX:,}"
    return missed(name, stored, [*prefix, *ids(BRANCH)])


def growth() -> list[Figure]:
    """The same search, of a prompt that shares 1,000 tokens with all, as the trie grows."""
    prefix = ids(1_000)
    wanted = [*prefix, *ids(500)]
    figures = []
    for count in (10, 100, 1_000):
        stored = [[*prefix, VOCABULARY + number, *ids(99)] for number in range(count)]
        figures += missed(f"find over {count:,} branches of 100 on 1,000", stored, wanted)[:1]
    return figures


def weight() -> Figure:
    """Bytes a token that the index holds, for ids that nobody else keeps."""

    def measure(make: type) -> float:
        gc.collect()
        tracemalloc.start()
        trie = filled(make, [ids(LENGTH)])
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        del trie
        return held / LENGTH

    return compared("index, a token", measure, "bytes", 1)


def missed(name: str, stored: list[list[int]], wanted: list[int]) -> list[Figure]:
    """A search that finds only a part; our trie without and with a look at `longer`."""
    without = compared(name, lambda make: search(make, stored, wanted, SLOW_REPEATS))

    def read(found: Any) -> Any:
        return found.longer

    ours = 1e3 * search(OurTrie, stored, wanted, REPEATS, read)
    return [without, without._replace(name=f"{name}, `longer` read", ours=ours)]


def compared(name: str, measure: Measure, unit: str = "ms", scale: float = 1e3) -> Figure:
    """One measure of both classes."""
    return Figure(name, unit, scale * measure(TheirTrie), scale * measure(OurTrie))


def insertion(make: type, path: list[int]) -> float:
    """Seconds to insert a path into an empty trie."""
    return timed(lambda wanted: make().add("m", wanted, 1), path, REPEATS)


def search(
    make: type,
    stored: list[list[int]],
    wanted: list[int],
    repeats: int,
    read: Callable[[Any], Any] = lambda found: found,
) -> float:
    """Seconds of one search in a trie that holds `stored`."""
    trie = filled(make, stored)
    return timed(lambda again: read(trie.search("m", again)), wanted, repeats)


def filled(make: type, stored: list[list[int]]) -> Trie:
    """A trie that holds these paths."""
    trie = make()
    for number, path in enumerate(stored):
        trie.add("m", path, number)
    return trie


def timed(call: Callable[[list[int]], Any], tokens: list[int], repeats: int) -> float:
    """The median seconds of a call, each with integers of its own."""
    taken = []
    for _ in range(repeats):
        fresh = [int(str(token)) for token in tokens]
        started = time.perf_counter()
        call(fresh)
        taken.append(time.perf_counter() - started)
    return median(taken)


def ids(count: int) -> list[int]:
    """Random tokens."""
    return _RANDOM.choices(range(VOCABULARY), k=count)


def table(figures: list[Figure]) -> str:
    """The figures as Markdown."""
    lines = ["| | mlx-lm | ours | times less |", "| :-- | --: | --: | --: |"]
    for name, unit, theirs, ours in figures:
        ratio = theirs / ours
        lines.append(f"| {name} | {shown(theirs)} {unit} | {shown(ours)} {unit} | {ratio:,.0f} |")
    return "\n".join(lines)


def shown(value: float) -> str:
    """A number with three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    raise SystemExit(main())
