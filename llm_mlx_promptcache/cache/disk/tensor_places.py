"""The tensors of a span's file: their order and places in it, checked before reading.

The tokens come first, then rows. The ends of layers (`layers/ends.py`) follow behind the digest of
all before them, with a digest of their own: who does not need them does not read them. A pack has
all layer by layer, and one digest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from itertools import compress
from typing import Any, Final, NamedTuple

import mlx.core as mx

from ..layers.ends import ends_in, has_ends
from ..layers.layout import Layout
from ..span import StoredTensor
from .span_bytes import DIGEST_BYTES

MOST_AXES: Final = 8
_DIGEST: Final = "digest"
_ENDS_DIGEST: Final = "digest.ends"
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


class TensorShape(NamedTuple):
    """A tensor as a header lists it: safetensors' name of its type, its shape and its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def header_of(
    metadata: dict[str, str],
    count: int,
    tensors: Sequence[TensorShape],
    ends: Sequence[TensorShape] | None = None,
) -> bytes:
    """The beginning of a file of `count` tokens and these tensors: its header behind its length.

    `ends` follow the digest of all before them, and have one of their own.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    tokens = TensorShape("tokens", "U32", (count,), 4 * count)
    listed = [tokens, *tensors, _digest_shape(_DIGEST)]
    if ends is not None:
        listed += [*ends, _digest_shape(_ENDS_DIGEST)]
    offset = 0
    for name, dtype, shape, nbytes in listed:
        end = offset + nbytes
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _digest_shape(name: str) -> TensorShape:
    return TensorShape(name, "U8", (DIGEST_BYTES,), DIGEST_BYTES)


def ends_begin(header: dict[str, Any], data_bytes: int) -> int | None:
    """The place in a file's data at which its ends begin; None if it has no digest of ends."""
    if _ENDS_DIGEST not in header:
        return None
    _, at = header[_DIGEST]["data_offsets"]
    if type(at) is not int or not DIGEST_BYTES <= at <= data_bytes - DIGEST_BYTES:
        raise ValueError("its ends do not lie where they should")
    return at


def entries_of(
    header: dict[str, Any], layout: Layout, data_bytes: int, *, parted: bool = False
) -> list[list[StoredTensor | None]]:
    """The tensors of a file's data: tokens first, then layer by layer, then digests.

    They are placed as safetensors requires: no hole, no overlap, all of the file; the ends of
    layers behind the first digest where they are `parted` from rows.
    """
    digests = [_DIGEST, _ENDS_DIGEST] if parted else [_DIGEST]
    found: dict[str, StoredTensor] = {}
    at = 0
    for name in _in_file(layout) if parted else _in_layers(layout):
        entry = header.get(name)
        if entry is not None:
            found[name] = _entry(name, entry, at)
            at = found[name].end
    tokens = found.get("tokens")
    if tokens is None or tokens.dtype != mx.uint32 or not found.keys() >= {*digests}:
        raise ValueError("its tokens or its digest are missing")
    sizes = {found[name].end - found[name].begin for name in digests}
    if at != data_bytes or len(found) != len(header) or sizes != {DIGEST_BYTES}:
        raise ValueError("its tensors are not its content")
    names = [["tokens"], *names_of(layout), digests]
    return [[found.get(name) for name in row] for row in names]


def _entry(name: str, entry: dict[str, Any], at: int) -> StoredTensor:
    dtype, shape = BY_NAME[entry["dtype"]], tuple(entry["shape"])
    if len(shape) > MOST_AXES:
        raise ValueError(f"{name} has {len(shape)} axes")
    begin, end = entry["data_offsets"]
    count = dtype.size
    for size in shape:
        if type(size) is not int or size < 0:
            raise ValueError(f"{name} has a size that is none")
        count *= size
    if type(begin) is not int or type(end) is not int or begin != at or end - begin != count:
        raise ValueError(f"{name} does not lie where it should")
    return StoredTensor(dtype, shape, begin, end)


@lru_cache(maxsize=16)
def names_of(layout: Layout) -> list[list[str]]:
    """The names of the arrays of each layer."""
    return [[f"layer.{i}.{j}" for j in range(kind.arity)] for i, kind in enumerate(layout)]


@lru_cache(maxsize=16)
def names_of_ends(layout: Layout) -> frozenset[str] | None:
    """The names of the arrays that are kept behind rows; None if such layers have none."""
    if not has_ends(layout):
        return None
    pairs = zip(names_of(layout), layout, strict=True)
    return frozenset(name for names, kind in pairs for name in compress(names, ends_in(kind)))


@lru_cache(maxsize=16)
def _in_layers(layout: Layout) -> list[str]:
    """The names of a file's tensors where all follow each other layer by layer."""
    return ["tokens", *(name for names in names_of(layout) for name in names), _DIGEST]


@lru_cache(maxsize=16)
def _in_file(layout: Layout) -> list[str]:
    """The same where ends are parted from rows."""
    ends = names_of_ends(layout) or ()
    tokens, *layers, digest = _in_layers(layout)
    rows = [name for name in layers if name not in ends]
    return [tokens, *rows, digest, *(name for name in layers if name in ends), _ENDS_DIGEST]
