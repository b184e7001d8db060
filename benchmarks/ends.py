"""Ends: the bytes that a restore reads of a conversation whose layers keep states or windows.

A path of 50 turns of 100 tokens, a file each, in the shapes of two models: Qwen3-Next (36 layers
of states beside 12 of rows) and Gemma 3 4B (29 windows of 1,024 beside 5 of rows), whose path is
also read from a pack. Bytes are counted where the system is asked for them; nothing is timed. It
writes up to 5 GB to a folder of its own, and removes it. Prints a Markdown table; `--json FILE`
also writes the figures, `--keep FOLDER` writes the table into FOLDER/disk.md. Status 1 where more
is read than is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from harness import write_part
from mlx_lm.models.cache import ArraysCache, KVCache, RotatingKVCache

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.prompt_cache import PromptCache

_TURN = 100  # tokens
_COMMAND = "benchmarks/ends.py --keep docs"
_WINDOW = 1024


class Shape(NamedTuple):
    """A model's layers, which `more` makes a turn longer; its path is one pack if `packed`."""

    what: str
    more: Callable[[list[Any] | None], list[Any]]
    packed: bool = False


class Row(NamedTuple):
    """One model's path: bytes of its files, and of those read from it."""

    what: str
    files: int
    stored: int
    read: int


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=50)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--keep", type=Path, help="write the table into FOLDER/disk.md")
    asked = parser.parse_args()
    rows = [_row(shape, asked.turns) for shape in SHAPES]
    table = "| layers | files | bytes in them | read by a restore |\n|---|--:|--:|--:|\n" + "".join(
        f"| {row.what} | {row.files} | {row.stored / 1e6:,.0f} MB | {row.read / 1e6:,.0f} MB |\n"
        for row in rows
    )
    sys.stdout.write(table)
    if asked.json is not None:
        asked.json.write_text(json.dumps([row._asdict() for row in rows], indent=1))
    if asked.keep is not None:
        write_part(asked.keep / "disk.md", "ends", _COMMAND, table)
    return int(any(row.read > row.stored for row in rows))


def _rows(heads: int, width: int) -> mx.array:
    return mx.random.normal((1, heads, _TURN, width)).astype(mx.bfloat16)


def _qwen3_next(layers: list[Any] | None) -> list[Any]:
    """The layers after one more turn; new ones at first."""
    if layers is None:
        layers = [KVCache() if n % 4 == 3 else ArraysCache(2) for n in range(48)]
    for layer in layers:
        if isinstance(layer, KVCache):
            layer.update_and_fetch(_rows(2, 256), _rows(2, 256))
        else:
            layer[0] = mx.random.normal((1, 3, 8192)).astype(mx.bfloat16)
            layer[1] = mx.random.normal((1, 32, 128, 128))
    return layers


def _gemma3_4b(layers: list[Any] | None) -> list[Any]:
    """The layers after one more turn; new ones at first."""
    if layers is None:
        layers = [KVCache() if n % 6 == 5 else RotatingKVCache(_WINDOW) for n in range(34)]
    for layer in layers:
        layer.update_and_fetch(_rows(4, 256), _rows(4, 256))
    return layers


SHAPES = (
    Shape("Qwen3-Next: 36 of states, 12 of rows", _qwen3_next),
    Shape("Gemma 3 4B: 29 of windows, 5 of rows", _gemma3_4b),
    Shape("the same in a pack", _gemma3_4b, packed=True),
)


def _row(shape: Shape, turns: int) -> Row:
    tokens = random.Random(0).choices(range(150_000), k=turns * _TURN)
    with tempfile.TemporaryDirectory(prefix="ends-") as name:
        store = DiskStore(name, "100GB")
        cache = PromptCache("2GB", store)
        layers: list[Any] | None = None
        for end in range(_TURN, len(tokens) + 1, _TURN):
            layers = shape.more(layers)
            mx.eval([layer.state for layer in layers])
            cache.insert("m", tokens[:end], layers)
            cache.flush()
        if shape.packed:
            deque(store.compact(), maxlen=0)
        files = [path.stat().st_size for path in store.spans_folder.iterdir()]
        with _counted() as read:
            lease = PromptCache("20GB", DiskStore(name, "100GB")).fetch("m", [*tokens, 1])
        if lease.cached != len(tokens):
            raise SystemExit(f"{shape.what}: {lease.why}")
        return Row(shape.what, len(files), sum(files), sum(read))


@contextmanager
def _counted() -> Iterator[list[int]]:
    """The bytes that each read of a file gets meanwhile."""
    real, counts = os.readv, []

    def readv(descriptor: int, buffers: Any) -> int:
        counts.append(real(descriptor, buffers))
        return counts[-1]

    os.readv = readv
    try:
        yield counts
    finally:
        os.readv = real


if __name__ == "__main__":
    sys.exit(main())
