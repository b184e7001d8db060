"""Restores of a path beside mlx-lm's own prompt file, each the first of a fresh process.

`load_prompt_cache` and evaluating the same bytes verifies nothing; ours verifies all of it. They
alternate, with files that the system holds in memory and with files that it was told to forget.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from harness import at_most
from mlx_lm.models.cache import load_prompt_cache, save_prompt_cache

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.prompt_cache import PromptCache

REFERENCE = "mlx-lm"
STATES = ("warm", "cold")
_FILE = "reference.safetensors"
_ONCE = """
import sys
from pathlib import Path
from disk_restores import restore_once
print(restore_once(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
"""


def forgets() -> bool:
    """True if this system can be told to forget what it has read; macOS can't."""
    return hasattr(os, "posix_fadvise")


def tokens_of(count: int) -> list[int]:
    """A prompt: one token more than stored."""
    return random.Random(0).choices(range(49_152), k=count + 1)


def store_reference(folder: Path, layers: list[Any]) -> int:
    """Write mlx-lm's prompt file of these rows; returns its bytes."""
    save_prompt_cache(str(folder / _FILE), layers)
    return (folder / _FILE).stat().st_size


def store_spans(store: DiskStore, layers: list[Any], count: int, spans: int) -> None:
    """Store a path of `count` tokens, as so many spans."""
    cache = PromptCache("10GB", store)
    for number in range(1, spans + 1):
        cache.insert("m", tokens_of(count)[: count * number // spans], layers)
    cache.flush()


def pack(store: DiskStore) -> int:
    """Make one pack of all spans; returns its bytes."""
    *_, done = store.compact()
    assert done.packs == 1
    (path,) = store.spans_folder.iterdir()
    return path.stat().st_size


def restore_once(folder: Path, what: str, count: int) -> float:
    """Milliseconds of this process's first restore, or of mlx-lm's own."""
    tokens = tokens_of(count)
    mx.eval(mx.zeros(1) + 1)  # both would start MLX's thread
    started = time.perf_counter()
    if what == REFERENCE:
        loaded = load_prompt_cache(str(folder / _FILE))
        mx.eval([layer.state[:2] for layer in loaded])
    else:
        lease = PromptCache("10GB", DiskStore(folder / what, "50GB")).fetch("m", tokens)
        assert lease.cached == count, lease.why
    return (time.perf_counter() - started) * 1e3


def restores(folder: Path, ours: Sequence[str], count: int, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of restores and their ratios to mlx-lm's, warm and cold."""
    results = []
    for cold in (False, True)[: 1 + forgets()]:
        runs: dict[str, list[float]] = {what: [] for what in (REFERENCE, *ours)}
        for _ in range(rounds):
            for what, times in runs.items():
                if cold:
                    _forget(folder)
                times.append(_restored(folder, what, count))
        base = statistics.median(runs[REFERENCE])
        for what, times in runs.items():
            middle = statistics.median(times)
            results.append({"cold": cold, "what": what, "ms": middle, "ratio": middle / base})
    return results


def rows_of(found: list[dict[str, Any]], bars: dict[str, dict[str, float]]) -> str:
    """The results as rows of a table; `bars` has the highest ratios, of each state by `what`."""
    lines = []
    for cold, state in enumerate(STATES[: 1 + forgets()]):
        here = [row for row in found if row["cold"] == cold]
        cells = [bars[state].get(row["what"]) for row in here]
        lines += [
            f"| page cache {state}, ms | " + " | ".join(f"{row['ms']:.1f}" for row in here) + " |",
            "| times mlx-lm's | " + " | ".join(f"{row['ratio']:.2f}" for row in here) + " |",
            "| at most | "
            + " | ".join(at_most(row["ratio"], bar) for row, bar in zip(here, cells, strict=True))
            + " |",
        ]
    return "\n".join(lines)


def _forget(folder: Path) -> None:
    """Have the system drop these files from its page cache; only where `forgets` says so."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _restored(folder: Path, what: str, count: int) -> float:
    """`restore_once` in a process of its own."""
    command = [sys.executable, "-c", _ONCE, str(folder), what, str(count)]
    here = Path(__file__).parent
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=here)
    return float(done.stdout)
