"""The header of a span's file: which tensors lie where, checked before any of them is read."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, Final, NamedTuple

import mlx.core as mx

from .layers import Layout, layout_from_json

DIGEST_BYTES: Final = 16
MAX_HEADER: Final = 4 << 20
_MAX_LAYERS = 1 << 16
# safetensors' names; the letter is the memoryview format of the same width that carries the bits.
DTYPES: dict[mx.Dtype, tuple[str, str]] = {
    mx.float32: ("F32", "I"),
    mx.float16: ("F16", "H"),
    mx.bfloat16: ("BF16", "H"),
    mx.uint64: ("U64", "Q"),
    mx.int64: ("I64", "Q"),
    mx.uint32: ("U32", "I"),
    mx.int32: ("I32", "I"),
    mx.uint16: ("U16", "H"),
    mx.int16: ("I16", "H"),
    mx.uint8: ("U8", "B"),
    mx.int8: ("I8", "B"),
    mx.bool_: ("BOOL", "B"),
}
BY_NAME = {name: dtype for dtype, (name, _) in DTYPES.items()}
UNSIGNED = {"Q": mx.uint64, "I": mx.uint32, "H": mx.uint16, "B": mx.uint8}


class Entry(NamedTuple):
    """A tensor in a file's data."""

    dtype: mx.Dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def entries_of(header: dict[str, Any], layout: Layout, room: int) -> list[list[Entry | None]]:
    """The tensors of a file's data, tokens first, then layer by layer, then the digest.

    They lie as safetensors wants them: no hole, no overlap, all of the file.
    """
    found: list[list[Entry | None]] = []
    at = known = 0
    for names in _names(layout):
        row: list[Entry | None] = []
        for name in names:
            entry = header.get(name)
            if entry is None:
                row.append(None)
                continue
            made = _entry(name, entry, at)
            row.append(made)
            at, known = made.end, known + 1
        found.append(row)
    tokens, digest = found[0][0], found[-1][0]
    if tokens is None or tokens.dtype != mx.uint32 or digest is None:
        raise ValueError("its tokens or its digest are missing")
    if at != room or known != len(header) or digest.end - digest.begin != DIGEST_BYTES:
        raise ValueError("its tensors are not its content")
    return found


def _entry(name: str, entry: dict[str, Any], at: int) -> Entry:
    dtype, shape = BY_NAME[entry["dtype"]], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    count = dtype.size
    for size in shape:
        if type(size) is not int or size < 0:
            raise ValueError(f"{name} has a size that is none")
        count *= size
    if type(begin) is not int or type(end) is not int or begin != at or end - begin != count:
        raise ValueError(f"{name} does not lie where it should")
    return Entry(dtype, shape, begin, end)


@lru_cache(maxsize=16)
def _names(layout: Layout) -> list[list[str]]:
    layers = [[f"layer.{i}.{j}" for j in range(kind.arity)] for i, kind in enumerate(layout)]
    return [["tokens"], *layers, ["digest"]]


@lru_cache(maxsize=16)
def layout_of_text(text: str) -> Layout:
    """A layout from its description in a header; ValueError for anything else."""
    runs = json.loads(text)
    if sum(int(count) for count, _ in runs) > _MAX_LAYERS:
        raise ValueError("more layers than any model has")
    return layout_from_json(runs)
