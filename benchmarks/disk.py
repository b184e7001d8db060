"""The disk tier beside mlx-lm's own prompt file, and its index at full size.

Restores a path of the default model's shape, stored as 1, 10 and 50 spans, and as 50 in a pack,
verified, against `load_prompt_cache` and evaluating the same bytes, which verifies nothing. Each
is the first of a fresh process, as for the command line, and they alternate. Also: the cost of a
short span as a file of its own. Run with: python benchmarks/disk.py
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from importlib.metadata import version
from pathlib import Path
from typing import Any

import disk_waits
import mlx.core as mx
from mlx_lm.models.cache import (
    KVCache,
    load_prompt_cache,
    make_prompt_cache,
    save_prompt_cache,
    trim_prompt_cache,
)
from mlx_lm.models.llama import Model, ModelArgs

from llm_mlx_promptcache.cache.disk.index_rows import SpanRow
from llm_mlx_promptcache.cache.disk.span_file import host_tensors
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.layers.kinds import KVRows
from llm_mlx_promptcache.cache.layers.layout import layout_to_json
from llm_mlx_promptcache.cache.new_spans import SHORT
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.cache.span import NewSpan

LAYERS, HEADS, WIDTH = 30, 3, 64  # SmolLM2-135M
SPANS = {"1": 1, "10": 10, "50": 50, "50 packed": 50}
BARS = {"1": 1.5, "10": 1.75, "50": 2.25, "50 packed": 1.15}
REFERENCE = "reference.safetensors"


def layers_of(count: int) -> list[Any]:
    """Random rows, float32 as the default model has them on a CPU."""
    made = []
    for _ in range(LAYERS):
        layer = KVCache()
        layer.update_and_fetch(*(mx.random.normal((1, HEADS, count, WIDTH)) for _ in range(2)))
        made.append(layer)
    mx.eval([layer.state[:2] for layer in made])
    return made


def forgets() -> bool:
    """True if this system can be told to forget what it has read; macOS can't."""
    return hasattr(os, "posix_fadvise")


def forget(folder: Path) -> None:
    """Have the system drop these files from its page cache; only where `forgets` says so."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def store_path(folder: Path, count: int) -> None:
    """The same rows as mlx-lm's prompt file, and as several spans."""
    layers = layers_of(count)
    save_prompt_cache(str(folder / REFERENCE), layers)
    for name, spans in SPANS.items():
        store = DiskStore(folder / name, "50GB")
        cache = PromptCache("10GB", store)
        for number in range(1, spans + 1):
            cache.insert("m", tokens_of(count)[: count * number // spans], layers)
        cache.flush()
        if name.endswith("packed"):
            *_, done = store.compact()
            assert done.packs == 1


def tokens_of(count: int) -> list[int]:
    """A prompt: one token more than stored."""
    return random.Random(0).choices(range(49_152), k=count + 1)


def restore_once(folder: Path, what: str, count: int) -> float:
    """Milliseconds of this process's first restore, or of mlx-lm's own."""
    tokens = tokens_of(count)
    mx.eval(mx.zeros(1) + 1)  # both would start MLX's thread
    started = time.perf_counter()
    if what == "mlx-lm":
        loaded = load_prompt_cache(str(folder / REFERENCE))
        mx.eval([layer.state[:2] for layer in loaded])
    else:
        lease = PromptCache("10GB", DiskStore(folder / what, "50GB")).fetch("m", tokens)
        assert lease.cached == count, lease.why
    return (time.perf_counter() - started) * 1e3


def restores(folder: Path, count: int, rounds: int) -> list[dict[str, Any]]:
    """Times of restores, each the first of a fresh process, warm and cold; they alternate."""
    store_path(folder, count)
    results = []
    for cold in (False, True)[: 1 + forgets()]:
        runs: dict[str, list[float]] = {what: [] for what in ("mlx-lm", *SPANS)}
        for _ in range(rounds):
            for what, times in runs.items():
                if cold:
                    forget(folder)
                command = [sys.executable, __file__, "--once", what, str(folder)]
                command += ["--tokens", str(count)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                times.append(float(done.stdout))
        base = statistics.median(runs["mlx-lm"])
        for what, times in runs.items():
            middle = statistics.median(times)
            results.append({"cold": cold, "what": what, "ms": middle, "ratio": middle / base})
    return results


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
    inner, times = store._add, []

    def add(*arguments: Any) -> bool:
        started = time.perf_counter()
        done = inner(*arguments)
        times.append((time.perf_counter() - started) * 1e3)
        return done

    store._add = add  # type: ignore[method-assign]
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


def peak(folder: Path, count: int) -> dict[str, float]:
    """Peak memory of a restore, in its own rows."""
    tokens = tokens_of(count)
    own = LAYERS * 2 * HEADS * WIDTH * 4 * count
    found = {}
    for name in SPANS:
        gc.collect()
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        lease = PromptCache("10GB", DiskStore(folder / name, "50GB")).fetch("m", tokens)
        found[name] = (mx.get_peak_memory() - before) / own
        del lease
    return found


def prefills(count: int, rounds: int) -> dict[int, float]:
    """Milliseconds to prefill this many tokens after `count` others, by their number."""
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "vocab_size": 49_152}
    heads = {"num_attention_heads": 9, "num_key_value_heads": HEADS}
    model = Model(ModelArgs("llama", num_hidden_layers=LAYERS, rms_norm_eps=1e-5, **sizes, **heads))
    mx.eval(model.parameters())
    layers = make_prompt_cache(model)
    mx.eval(model(mx.array([tokens_of(count)[:count]]), cache=layers))
    found = {}
    for more in (1, SHORT, 4 * SHORT):
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            mx.eval(model(mx.array([list(range(more))]), cache=layers))
            times.append((time.perf_counter() - started) * 1e3)
            trim_prompt_cache(layers, more)
        found[more] = statistics.median(times)
    return found


def short_spans(rows: list[dict[str, Any]], count: int, rounds: int) -> dict[str, Any]:
    """The cost of a file of its own at each read of a span, compared with its rows."""
    ms = {row["what"]: row["ms"] for row in rows if not row["cold"]}
    each = (ms["50"] - ms["1"]) / 49
    a_row = (ms["1"] - each) / count
    prefill = {str(more): took for more, took in prefills(count, rounds).items()}
    return {"file": each, "row": a_row, "rows worth a file": each / a_row, "prefill": prefill}


def report(found: dict[str, Any], count: int, rounds: int) -> str:
    """The figures as docs/disk.md shows them."""
    names = ["mlx-lm", *SPANS]
    lines = []
    for state in ("warm", "cold")[: 1 + forgets()]:
        ms = {r["what"]: r["ms"] for r in found["restores"] if r["cold"] == (state == "cold")}
        ratios = {
            r["what"]: r["ratio"] for r in found["restores"] if r["cold"] == (state == "cold")
        }
        lines.append(
            f"| page cache {state}, ms | " + " | ".join(f"{ms[n]:.1f}" for n in names) + " |"
        )
        lines.append("| times mlx-lm's | " + " | ".join(f"{ratios[n]:.2f}" for n in names) + " |")
    peaks = " | ".join(f"{value:.2f}" for value in found["peaks"].values())
    bars = " | ".join(map(str, BARS.values()))
    index = {name: f"{ms:.2f}" for name, ms in found["index"].items()}
    short = found["short"]
    each, row, worth = short["file"], short["row"] * 1e3, short["rows worth a file"]
    took = ", ".join(f"{more} more, {ms:.0f} ms" for more, ms in short["prefill"].items())
    where = f"{os.cpu_count()} cores, mlx {version('mlx')} on {mx.default_device()}"
    return f"""{where}, load {os.getloadavg()[0]:.1f} at the end.
{count} tokens of the default model's shape in float32, each the first restore of a fresh process,
medians of {rounds}, against mlx-lm's `load_prompt_cache` and evaluating the same bytes:

| | mlx-lm | 1 span | 10 spans | 50 spans | 50 spans in a pack |
|---|--:|--:|--:|--:|--:|
{chr(10).join(lines)}
| at most | | {bars} |
| peak memory, times the rows | | {peaks} |

| index of 10,000 spans and 5,000,000 tokens | ms | at most |
|---|--:|--:|
| a fresh process's first lookup | {index["first lookup"]} | 20 |
| an insert's transaction, median | {index["insert, median"]} | 5 |
| the worst of 200 | {index["insert, worst of 200"]} | |
| a save that evicts | {index["save with its evictions"]} | |

{disk_waits.report(found["waits"])}
A file of its own costs {each:.2f} ms at each read, as much as the rows of {worth:.0f} tokens
({row:.0f} µs each): ends of paths below `SHORT` ({SHORT}) tokens wait, to be rows of the next
one. A crash loses what waits: after {count} tokens prefill takes, for {took}.
"""


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--once", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        what, place = options.once
        print(restore_once(Path(place), what, options.tokens))
        return
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        found["restores"] = restores(Path(folder), options.tokens, options.rounds)
        found["peaks"] = peak(Path(folder), options.tokens)
    with tempfile.TemporaryDirectory() as folder:
        found["index"] = index_times(Path(folder), 10_000, 5_000_000)
    found["waits"] = disk_waits.measure()
    found["short"] = short_spans(found["restores"], options.tokens, options.rounds)
    print(report(found, options.tokens, options.rounds))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
