"""Coded rows: how small keys and values become, and how fast one thread reads them back.

The default model's own rows over a page of text, and random numbers whose scale differs from
channel to channel, each in bfloat16, and the same coding tried on two-byte float16 and on the
halves of float32. Plain zstd is beside it. Prints a Markdown table; `--json FILE` also writes the
figures, `--keep FOLDER` writes the table into FOLDER/disk.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import zstandard
from harness import write_part
from model_rows import model_rows

from llm_mlx_promptcache.cache.disk.coding import coded, decoded_into

_BLOCK = 4 << 20  # bytes, as packs have them
_ROUNDS = 9
_TOKENS = 2_000
_COMMAND = "benchmarks/coding.py --keep docs"


class Row(NamedTuple):
    """One kind of rows: bytes coded and under plain zstd, both over what they were; GB/s."""

    what: str
    coded: float
    zstd: float
    reading: float


def main() -> int:
    """Print the table; status 1 where a block is not what it was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--keep", type=Path, help="write the table into FOLDER/disk.md")
    asked = parser.parse_args()
    rows = [_row(what, block) for what, block in blocks().items()]
    table = (
        "| rows | coded | plain zstd | read back by one thread |\n|---|--:|--:|--:|\n"
        + "".join(
            f"| {row.what} | {row.coded:.2f} | {row.zstd:.2f} | {row.reading:.1f} GB/s |\n"
            for row in rows
        )
    )
    sys.stdout.write(table)
    if asked.json is not None:
        asked.json.write_text(json.dumps([row._asdict() for row in rows], indent=1))
    if asked.keep is not None:
        write_part(asked.keep / "disk.md", "coding", _COMMAND, table)
    return 0


def blocks() -> dict[str, bytes]:
    """A block of each kind of rows, as bytes."""
    random = np.random.default_rng(0)
    scales = np.exp(random.normal(size=128)).astype(np.float32)
    normal = (random.normal(size=(_BLOCK // 512, 128)) * scales).astype(np.float32)
    return {
        "the default model's, bfloat16": _model_block(),
        "random, bfloat16": _bfloat16(mx.array(normal)),
        "random, float16": normal.astype(np.float16).tobytes(),
        "random, float32": normal.tobytes(),
        "random, quantised to 8 bits": np.asarray(
            mx.quantize(mx.array(normal), bits=8)[0]
        ).tobytes(),
    }


def _bfloat16(rows: mx.array) -> bytes:
    bits = mx.contiguous(rows.astype(mx.bfloat16)).view(mx.uint8)
    return bytes(memoryview(bits))  # type: ignore[arg-type]


def _model_block() -> bytes:
    """Keys and values of a page of text, as the default model has them, in bfloat16."""
    parts = (part for layer in model_rows(_TOKENS).layers for part in layer.state[:2])
    return b"".join(_bfloat16(part) for part in parts)[:_BLOCK]


def _row(what: str, block: bytes) -> Row:
    small = coded(block)
    target = bytearray(len(block))
    seconds = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        decoded_into(small, [memoryview(target)])
        seconds.append(time.perf_counter() - began)
    if target != block:
        raise SystemExit(f"{what}: a block came back as another one")
    plain = zstandard.ZstdCompressor(level=1).compress(block)
    size = len(block)
    return Row(what, len(small) / size, len(plain) / size, size / median(seconds) / 1e9)


if __name__ == "__main__":
    sys.exit(main())
