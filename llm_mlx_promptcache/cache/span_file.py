"""One span as one immutable file: written privately, published by rename, verified when read.

The file is a valid safetensors file whose last tensor is a digest of all bytes before it. The
digest is against accidents; who may write is settled by owner and mode, so it is the fast xxh3.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from array import array
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import mlx.core as mx
import xxhash

from .layer_kinds import Piece
from .layers import Layout, layout_from_json, layout_to_json

FORMAT = "llm-mlx-promptcache/1"
SUFFIX = ".safetensors"
TEMPORARY = ".tmp-"

_DIGEST_BYTES = 16
_MAX_HEADER = 4 << 20
# safetensors' names; the letter is the memoryview format of the same width that carries the bits.
_DTYPES: dict[mx.Dtype, tuple[str, str]] = {
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
_BY_NAME = {name: (dtype, letter) for dtype, (name, letter) in _DTYPES.items()}
_UNSIGNED = {"Q": mx.uint64, "I": mx.uint32, "H": mx.uint16, "B": mx.uint8}
_OWNER_ONLY = 0o600


class DamagedSpan(ValueError):
    """A span's file that is not what was written: told in one line, taken as a miss."""


class SpanFile(NamedTuple):
    """What a span's file holds: where it stands on its path, its tokens, a piece a layer."""

    namespace: str
    parent: str
    start: int
    tier: str
    layout: Layout
    tokens: array[int]
    pieces: list[Piece | None]


def write_span(folder: Path, span: SpanFile) -> tuple[str, int]:
    """Write a span under a new random name; returns that name's stem and the file's bytes.

    The name tells nothing of the content, and is not there before the whole file is.
    """
    stem = secrets.token_hex(16)
    temporary = folder / f"{TEMPORARY}{os.getpid()}-{stem}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(temporary, flags, _OWNER_ONLY)
    try:
        with os.fdopen(descriptor, "wb") as file:
            size = _write_body(file, span)
        temporary.replace(folder / (stem + SUFFIX))
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    return stem, size


def read_span(path: Path, max_bytes: int = 1 << 40) -> SpanFile:
    """Read and verify a span's file; DamagedSpan or OSError where it is not whole and ours."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise DamagedSpan(f"{path.name} is not a regular file of this user")
        if status.st_mode & 0o077:
            raise DamagedSpan(f"{path.name} can be read or written by other users")
        if not 8 + _DIGEST_BYTES < status.st_size <= max_bytes:
            raise DamagedSpan(f"{path.name} has {status.st_size} bytes")
        body = bytearray(status.st_size)
        if file.readinto(body) != status.st_size:
            raise DamagedSpan(f"{path.name} shrank while it was read")
    try:
        return _decode(memoryview(body))
    except (KeyError, TypeError, ValueError, RecursionError, RuntimeError) as error:
        raise DamagedSpan(f"{path.name}: {type(error).__name__}: {error}") from None


def _write_body(file: Any, span: SpanFile) -> int:
    tensors = {"tokens": mx.array(cast("Any", memoryview(span.tokens)))}
    for layer, piece in enumerate(span.pieces):
        for index, values in enumerate(piece or ()):
            if values is not None:
                tensors[f"layer.{layer}.{index}"] = values
    header: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT,
            "namespace": span.namespace,
            "parent": span.parent,
            "start": str(span.start),
            "tier": span.tier,
            "layout": json.dumps(layout_to_json(span.layout)),
        }
    }
    offset = 0
    for name, values in tensors.items():
        dtype = _DTYPES[values.dtype][0]
        end = offset + values.nbytes
        header[name] = {"dtype": dtype, "shape": values.shape, "data_offsets": [offset, end]}
        offset = end
    end = offset + _DIGEST_BYTES
    header["digest"] = {"dtype": "U8", "shape": [_DIGEST_BYTES], "data_offsets": [offset, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = xxhash.xxh3_128()
    for block in ((len(text)).to_bytes(8, "little"), text):
        digest.update(block)
        file.write(block)
    for values in tensors.values():
        raw = _bytes_of(values)
        digest.update(raw)
        file.write(raw)
    file.write(digest.digest())
    return 8 + len(text) + end


def _bytes_of(values: mx.array) -> memoryview:
    # Python has no bfloat16, so the bits travel as unsigned integers of the same width.
    unsigned = _UNSIGNED[_DTYPES[values.dtype][1]]
    bits = mx.contiguous(values.view(unsigned) if values.dtype != mx.bool_ else values)
    mx.eval(bits)
    return memoryview(cast("Any", bits)).cast("B") if bits.size else memoryview(b"")


def _decode(body: memoryview) -> SpanFile:
    if xxhash.xxh3_128_digest(body[:-_DIGEST_BYTES]) != bytes(body[-_DIGEST_BYTES:]):
        raise ValueError("its digest does not match its content")
    length = int.from_bytes(body[:8], "little")
    if not 2 <= length <= min(_MAX_HEADER, len(body) - 8):
        raise ValueError(f"header of {length} bytes")
    header = json.loads(bytes(body[8 : 8 + length]))
    metadata = header.pop("__metadata__")
    if metadata["format"] != FORMAT:
        raise ValueError(f"format {metadata['format']!r}, not {FORMAT!r}")
    arrays = {name: _array(body[8 + length :], entry) for name, entry in header.items()}
    layout = layout_from_json(json.loads(metadata["layout"]))
    tokens = array("I")
    tokens.frombytes(_bytes_of(arrays["tokens"]))
    return SpanFile(
        namespace=metadata["namespace"],
        parent=metadata["parent"],
        start=int(metadata["start"]),
        tier=metadata["tier"],
        layout=layout,
        tokens=tokens,
        pieces=[_piece(arrays, index, kind.arity) for index, kind in enumerate(layout)],
    )


def _piece(arrays: dict[str, mx.array], layer: int, arity: int) -> Piece | None:
    piece = tuple(arrays.get(f"layer.{layer}.{index}") for index in range(arity))
    return piece if any(values is not None for values in piece) else None


def _array(data: memoryview, entry: dict[str, Any]) -> mx.array:
    dtype, letter = _BY_NAME[entry["dtype"]]
    begin, end = entry["data_offsets"]
    shape = tuple(int(size) for size in entry["shape"])
    raw = data[begin:end]
    if begin < 0 or len(raw) != end - begin or any(size < 0 for size in shape):
        raise ValueError("a tensor lies outside the file")
    if not len(raw):
        return mx.zeros(shape, dtype)
    bits = mx.array(
        cast("Any", raw).cast(letter, shape)
    )  # raises where the shape is not the bytes'
    return bits.astype(dtype) if dtype == mx.bool_ else bits.view(dtype)
