"""A coded pack beside a plain one and mlx-lm's own file: the default model's rows in bfloat16."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from disk_restores import REFERENCE, pack, restores, rows_of, store_reference, store_spans
from harness import at_most
from model_rows import model_rows

from llm_mlx_promptcache.cache.disk.chains import CODED_AFTER
from llm_mlx_promptcache.cache.disk.files import Files
from llm_mlx_promptcache.cache.disk.store import DiskStore

PLAIN, CODED = "50 packed", "50 coded"
_SPANS = 50
_BARS = {"warm": {CODED: 2.5}, "cold": {CODED: 1.6}}
_MOST_BYTES = 0.72


class _Later(Files):
    """A clock by which everything stored now has rested."""

    def now(self) -> float:
        return time.time() + CODED_AFTER + 60


_CLOCKS = {PLAIN: Files(), CODED: _Later()}


def measure(folder: Path, count: int, rounds: int) -> dict[str, Any]:
    """Restores of both packs, the bytes of one in the other's, and milliseconds of prefilling."""
    layers, seconds = model_rows(count)
    store_reference(folder, layers)
    sizes = {what: _packed(folder / what, layers, count, files) for what, files in _CLOCKS.items()}
    return {
        "restores": restores(folder, (PLAIN, CODED), count, rounds),
        "bytes": sizes[CODED] / sizes[PLAIN],
        "prefill": seconds * 1e3,
    }


def _packed(folder: Path, layers: list[Any], count: int, files: Files) -> int:
    """The bytes of one pack of all spans, made at the time that `files` tell."""
    store_spans(DiskStore(folder, "50GB"), layers, count, _SPANS)
    return pack(DiskStore(folder, "50GB", files=files))


def report(found: dict[str, Any], count: int) -> str:
    """The figures as a table."""
    smaller, prefill = found["bytes"], found["prefill"]
    slowest = max(row["ms"] for row in found["restores"] if row["what"] == CODED)
    return f"""\
| {count} tokens of the default model in bfloat16 | {REFERENCE} | 50 spans in a pack | coded |
|---|--:|--:|--:|
{rows_of(found["restores"], _BARS)}
| bytes on the disk, times the pack's | | 1.00 | {smaller:.2f} |
| at most | | | {at_most(smaller, _MOST_BYTES)} |
| prefilling instead, ms | | | {prefill:,.0f} |
| the slower restore, times that | | | {slowest / prefill:.3f} |
| at most | | | {at_most(slowest / prefill, 1)} |
"""
