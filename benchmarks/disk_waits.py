"""The waits of lookups while the disk tier is changed, at full size.

A folder's budget is halved at 100,000 spans: while one process evicts, lookups of its own and of
another process are timed, each whole, beside the same lookups while nobody evicts: on a machine
that is busy otherwise both wait for a core. A chain of 2,000 spans is aged, and a process that was
stopped holds the index. There are no files: rows are what is locked. A part of benchmarks/disk.py;
alone: python benchmarks/disk_waits.py
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from pathlib import Path
from typing import Any

from harness import at_most

from llm_mlx_promptcache.cache.disk.index_rows import SpanRow
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.layers.kinds import KVRows
from llm_mlx_promptcache.cache.layers.layout import layout_to_json

LAYOUT = json.dumps(layout_to_json((KVRows(),)))
SIZE = 1000  # bytes that a row says its file has
DEPTH = 20  # spans of a conversation

LOOK = """
import sys, time
from array import array
from pathlib import Path
from llm_mlx_promptcache.cache.disk.store import DiskStore
folder = Path(sys.argv[1])
store = DiskStore(folder, "1TB")
ids = array("I", map(int, sys.argv[2].split(",")))
def worst_while(going_on):
    worst = shut = count = 0
    while going_on(count):
        started = time.perf_counter()
        store.lookup("m", ids)
        worst = max(worst, time.perf_counter() - started)
        shut, count = shut + store.unseen, count + 1
        time.sleep(0.001)
    return f"{worst * 1e3} {shut} {count}"
store.lookup("m", ids)
print(worst_while(lambda count: count < 1000), flush=True)
print(worst_while(lambda count: not (folder / "stop").exists()))
"""
HOLD = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN IMMEDIATE")
print("held", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""


def fill(store: DiskStore, spans: int, depth: int) -> array[int]:
    """Fill a store with chains of `depth` spans of four tokens; returns the last one's path."""

    def add(index: Any) -> None:
        with index.transaction():
            for number in range(spans):
                start = 4 * (number % depth)
                parent = f"{number - 1:032x}" if start else ""
                ids = array("I", [number, 1, 2, 3])
                row = SpanRow(f"{number:032x}", "m", parent, start, ids, True, number % 3, SIZE, 1)
                assert index.add(row, LAYOUT)

    store._index.run(add, None)
    first = spans - depth
    return array("I", [token for n in range(first, spans) for token in (n, 1, 2, 3)])


def halved(folder: Path, spans: int) -> dict[str, float]:
    """The worst lookups while half of a folder is evicted, in ms, and how long that takes."""
    path = fill(DiskStore(folder, "1TB"), spans, DEPTH)
    said = ",".join(map(str, path))
    other = subprocess.Popen(
        [sys.executable, "-c", LOOK, str(folder), said], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    quiet, *_ = map(float, other.stdout.readline().split())
    store = DiskStore(folder, spans * SIZE // 2)
    took: list[float] = []

    def evict() -> None:
        started = time.perf_counter()
        while not store.tend():
            pass
        took.append(time.perf_counter() - started)

    thread = threading.Thread(target=evict)
    thread.start()
    own = 0.0
    while thread.is_alive():
        started = time.perf_counter()
        store.lookup("m", path)
        own = max(own, time.perf_counter() - started)
        time.sleep(0.001)
    (folder / "stop").touch()
    worst, shut, count = map(float, other.communicate()[0].split())
    assert store.stats()["bytes"] <= spans * SIZE // 2
    return {
        "quiet": quiet,
        "other process": worst,
        "not let in": shut,
        "lookups": count,
        "same process": own * 1e3,
        "seconds": took[0],
    }


def aged(folder: Path, depth: int) -> float:
    """Seconds until a chain of spans that nobody has used for a day is gone."""
    store = DiskStore(folder, "1TB")
    fill(store, depth, depth)
    started = time.perf_counter()
    # `clear` would sweep first, and rows without a file be gone.
    assert store._upkeep.clear_some(None, 1, asked=True) == depth * SIZE
    return time.perf_counter() - started


def stopped(folder: Path) -> dict[str, float]:
    """Milliseconds of the worst of some lookups, and of writes, beside a stopped process."""
    path = fill(DiskStore(folder, "1TB"), 1000, DEPTH)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder / "index.sqlite")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    store = DiskStore(folder, "1TB")
    times: dict[str, list[float]] = {"lookup": [], "write": []}
    for _ in range(5):
        for what, action in (("write", store.tend), ("lookup", lambda: store.lookup("m", path))):
            store.used(store.lookup("m", path).spans)
            started = time.perf_counter()
            action()
            times[what].append((time.perf_counter() - started) * 1e3)
    holder.kill()
    holder.wait()
    return {
        "lookup": max(times["lookup"]),
        "first write": times["write"][0],
        "later writes": max(times["write"][1:]),
    }


def measure(spans: int = 100_000, depth: int = 2_000) -> dict[str, Any]:
    """All of it, as JSON data."""
    found: dict[str, Any] = {"spans": spans, "depth": depth}
    with tempfile.TemporaryDirectory() as folder:
        found["halved"] = halved(Path(folder), spans)
    with tempfile.TemporaryDirectory() as folder:
        found["aged"] = aged(Path(folder), depth)
    with tempfile.TemporaryDirectory() as folder:
        found["stopped"] = stopped(Path(folder))
    return found


def report(found: dict[str, Any]) -> str:
    """The figures as a table."""
    halved, stopped, spans = found["halved"], found["stopped"], f"{found['spans']:,}"
    other, same, out = (halved[name] for name in ("other process", "same process", "not let in"))
    aged = found["aged"] * 1e3
    return f"""| while others are at work | ms | at most |
|---|--:|--:|
| the worst of 1,000 lookups while nobody evicts | {halved["quiet"]:.1f} | |
| the worst lookup of another process while {spans} spans are halved | {other:.1f} | \
{at_most(other, 50)} |
| the worst of the process that evicts | {same:.1f} | {at_most(same, 50)} |
| lookups that were not let in, of {halved["lookups"]:,.0f} | {out:.0f} | {at_most(out, 0)} |
| all of that eviction, behind everybody's back | {halved["seconds"] * 1e3:.0f} | |
| a chain of {found["depth"]:,} spans is aged | {aged:.0f} | {at_most(aged, 1000)} |
| the worst lookup while a stopped process holds the index | {stopped["lookup"]:.1f} | \
{at_most(stopped["lookup"], 50)} |
| the first change meanwhile, by the writer's thread | {stopped["first write"]:.0f} | |
| later ones | {stopped["later writes"]:.2f} | |
"""


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spans", type=int, default=100_000)
    print(report(measure(parser.parse_args().spans)))


if __name__ == "__main__":
    main()
