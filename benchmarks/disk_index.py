"""The index of the disk tier at full size: a first lookup, and what inserts cost."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from array import array
from pathlib import Path
from typing import Any

import mlx.core as mx
from harness import at_most

from llm_mlx_promptcache.cache.disk.index_rows import SpanRow
from llm_mlx_promptcache.cache.disk.span_file import host_tensors
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.layers.kinds import KVRows
from llm_mlx_promptcache.cache.layers.layout import layout_to_json
from llm_mlx_promptcache.cache.span import NewSpan

LAYERS = 30


def fill_index(folder: Path, spans: int, tokens: int) -> list[int]:
    """An index of full size without the files; returns one path in it."""
    store = DiskStore(folder, "1TB")
    each = tokens // spans
    chain: list[int] = []
    path: list[int] = []
    layout = json.dumps(layout_to_json((KVRows(),) * LAYERS))
    rng = random.Random(1)

    def add(index: Any) -> None:
        with index.transaction():
            parent, depth = "", 0
            for number in range(spans):
                if number % 20 == 0:  # conversations of twenty turns
                    parent, depth = "", 0
                    chain.clear()
                ids = array("I", [50_000 + number, *rng.choices(range(49_152), k=each - 1)])
                file_id = f"{number:032x}"
                row = SpanRow(file_id, "m", parent, depth, ids, True, number % 3, 1000, 0)
                assert index.add(row, layout)
                parent, depth = file_id, depth + each
                chain.extend(ids)
                if number == spans // 2:
                    path[:] = chain

    store._index.run(add, None)
    store.close()
    return path


FIRST = """
import sys, time, json
from array import array
import mlx.core, mlx_lm.models.cache
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
ids = array("I", json.load(open(sys.argv[2])))
started = time.perf_counter()
store = DiskStore(sys.argv[1], "1TB")
layout = store.layout("m")
found = store.lookup("m", ids)
print((time.perf_counter() - started) * 1e3, found.end)
"""


def index_times(folder: Path, spans: int, tokens: int) -> dict[str, float]:
    """Milliseconds of a fresh process's first lookup, and of the inserts' transactions."""
    path = fill_index(folder, spans, tokens)
    (folder / "path.json").write_text(json.dumps(path))
    command = [sys.executable, "-c", FIRST, str(folder), str(folder / "path.json")]
    first = []
    for _ in range(5):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        milliseconds, end = done.stdout.split()
        assert int(end) == len(path)
        first.append(float(milliseconds))
    return {"first lookup": statistics.median(first), **insert_times(folder)}


def insert_times(folder: Path) -> dict[str, float]:
    """Milliseconds of each insert's transaction, and of one with an eviction behind it."""
    store = DiskStore(folder, "1TB")
    layout = (KVRows(),) * LAYERS
    [tensors] = host_tensors([tuple(mx.zeros((1, 1, 4, 4)) for _ in range(2))] * LAYERS)
    publisher, times = store._publisher, []
    inner = publisher._add

    def add(*arguments: Any) -> bool:
        started = time.perf_counter()
        done = inner(*arguments)
        times.append((time.perf_counter() - started) * 1e3)
        return done

    publisher._add = add  # type: ignore[method-assign]
    for number in range(200):
        ids = array("I", [70_000 + number, 1, 2, 3])
        assert store.save(NewSpan("m", layout, ids, 0, "user", tensors, True))
    full = DiskStore(folder, store.stats()["bytes"])
    started = time.perf_counter()
    for number in range(50):
        ids = array("I", [80_000 + number, 1, 2, 3])
        full.save(NewSpan("m", layout, ids, 0, "user", tensors, True))
    evicting = (time.perf_counter() - started) * 1e3 / 50
    return {
        "insert, median": statistics.median(times),
        "insert, worst of 200": max(times),
        "save with its evictions": evicting,
    }


def report(found: dict[str, float]) -> str:
    """The figures as a table."""
    rows = "\n".join(
        f"| {told} | {found[name]:.2f} | {at_most(found[name], bar)} |"
        for name, (told, bar) in _TOLD.items()
    )
    return f"| index of 10,000 spans and 5,000,000 tokens | ms | at most |\n|---|--:|--:|\n{rows}\n"


_TOLD: dict[str, tuple[str, float | None]] = {
    "first lookup": ("a fresh process's first lookup", 20),
    "insert, median": ("an insert's transaction, median", 5),
    "insert, worst of 200": ("the worst of 200", None),
    "save with its evictions": ("a save that evicts", None),
}
