"""The disk tier beside mlx-lm's own prompt file, and its index at full size.

Restores a path of the default model's shape, stored as 1, 10 and 50 spans, and as 50 in a pack,
verified, against `load_prompt_cache` and evaluating the same bytes, which verifies nothing. Each
is the first of a fresh process, as for the command line, and they alternate. The same of the
model's own rows in bfloat16, coded. Also: the cost of a short span as a file of its own. Run with:
python benchmarks/disk.py. Status 1 where something misses its target.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import disk_coded
import disk_index
import disk_waits
import mlx.core as mx
from disk_restores import (
    STATES,
    pack,
    restores,
    rows_of,
    store_reference,
    store_spans,
    tokens_of,
)
from harness import MISSED
from mlx_lm.models.cache import KVCache, make_prompt_cache, trim_prompt_cache
from mlx_lm.models.llama import Model, ModelArgs

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.new_spans import SHORT
from llm_mlx_promptcache.cache.prompt_cache import PromptCache

LAYERS, HEADS, WIDTH = 30, 3, 64  # SmolLM2-135M
SPANS = {"1": 1, "10": 10, "50": 50, "50 packed": 50}
BARS = {"1": 1.5, "10": 1.75, "50": 2.25, "50 packed": 1.15}


def layers_of(count: int) -> list[Any]:
    """Random rows, float32 as the default model has them on a CPU."""
    made = []
    for _ in range(LAYERS):
        layer = KVCache()
        layer.update_and_fetch(*(mx.random.normal((1, HEADS, count, WIDTH)) for _ in range(2)))
        made.append(layer)
    mx.eval([layer.state[:2] for layer in made])
    return made


def store_path(folder: Path, count: int) -> None:
    """The same rows as mlx-lm's prompt file, and as several spans."""
    layers = layers_of(count)
    store_reference(folder, layers)
    for name, spans in SPANS.items():
        store = DiskStore(folder / name, "50GB")
        store_spans(store, layers, count, spans)
        if name.endswith("packed"):
            pack(store)


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
    peaks = " | ".join(f"{value:.2f}" for value in found["peaks"].values())
    short = found["short"]
    each, row, worth = short["file"], short["row"] * 1e3, short["rows worth a file"]
    took = ", ".join(f"{more} more, {ms:.0f} ms" for more, ms in short["prefill"].items())
    where = f"{os.cpu_count()} cores, mlx {version('mlx')} on {mx.default_device()}"
    return f"""{where}, load {os.getloadavg()[0]:.1f} at the end.
{count} tokens of the default model's shape in float32, each the first restore of a fresh process,
medians of {rounds}, against mlx-lm's `load_prompt_cache` and evaluating the same bytes:

| | mlx-lm | 1 span | 10 spans | 50 spans | 50 spans in a pack |
|---|--:|--:|--:|--:|--:|
{rows_of(found["restores"], dict.fromkeys(STATES, BARS))}
| peak memory, times the rows | | {peaks} |

{disk_coded.report(found["coded"], count)}
{disk_index.report(found["index"])}
{disk_waits.report(found["waits"])}
A file of its own costs {each:.2f} ms at each read, as much as the rows of {worth:.0f} tokens
({row:.0f} µs each): ends of paths below `SHORT` ({SHORT}) tokens wait, to be rows of the next
one. A crash loses what waits: after {count} tokens prefill takes, for {took}.
"""


def main() -> int:
    """Print the figures; status 1 if something misses its target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    asked = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        store_path(Path(folder), asked.tokens)
        found["restores"] = restores(Path(folder), [*SPANS], asked.tokens, asked.rounds)
        found["peaks"] = peak(Path(folder), asked.tokens)
    with tempfile.TemporaryDirectory() as folder:
        found["coded"] = disk_coded.measure(Path(folder), asked.tokens, asked.rounds)
    with tempfile.TemporaryDirectory() as folder:
        found["index"] = disk_index.index_times(Path(folder), 10_000, 5_000_000)
    found["waits"] = disk_waits.measure()
    found["short"] = short_spans(found["restores"], asked.tokens, asked.rounds)
    text = report(found, asked.tokens, asked.rounds)
    print(text)
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=1))
    return int(MISSED in text)


if __name__ == "__main__":
    sys.exit(main())
