"""Our PromptTrie beside mlx-lm's: how long it takes to insert and to find, and what it weighs.

Prints a Markdown table of medians, with ratios. `--json FILE` also writes the figures. Prompts
are lists of ids made anew for each search, as a tokenizer makes them.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
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

Trie = Any  # both classes have the same methods and no type in common


class Figure(NamedTuple):
    """One measure of both: what it is, its unit, and how much of it each takes."""

    name: str
    unit: str
    theirs: float
    ours: float


def main() -> int:
    """Measure everything, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    target: Path | None = parser.parse_args().json
    figures = [*long_paths(), *branches(), *growth(), weight()]
    print(table(figures))
    if target is not None:
        rows = [{**f._asdict(), "ratio": f.theirs / f.ours} for f in figures]
        target.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def long_paths() -> list[Figure]:
    """One path of 100,000 tokens: put in, found, and missed after one token and half-way."""
    path = ids(LENGTH)
    early = [path[0], *ids(LENGTH - 1)]
    late = [*path[: LENGTH // 2], *ids(LENGTH // 2)]

    def insert(make: type) -> float:
        return timed(lambda wanted: make().add("m", wanted, 1), path, REPEATS)

    def search(wanted: list[int], repeats: int) -> Callable[[type], float]:
        return lambda make: timed(lambda again: find(filled(make, [path]), again), wanted, repeats)

    def found(make: type) -> float:
        trie = filled(make, [path])
        return timed(lambda wanted: find(trie, wanted), path, REPEATS)

    def missed(wanted: list[int]) -> Callable[[type], float]:
        def measure(make: type) -> float:
            trie = filled(make, [path])
            return timed(lambda again: find(trie, again), wanted, SLOW_REPEATS)

        return measure

    return [
        compared(f"insert {LENGTH:,} tokens", insert),
        compared(f"find {LENGTH:,} tokens", found),
        compared("find, parting after 1 token", missed(early)),
        compared(f"find, parting after {LENGTH // 2:,}", missed(late)),
    ]
