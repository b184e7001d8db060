"""One span as one immutable file: written privately, published by rename, verified when read.

The file is a valid safetensors file whose last tensor is a digest of all bytes before it. The
digest is against accidents; who may write is settled by owner and mode, so it is the fast xxh3.
What the file holds in which order: docs/disk.md.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from array import array
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import mlx.core as mx
import xxhash

from .files import Files
from .layers import Layout, layout_to_json
from .pieces import Piece
from .span_header import (
    DIGEST_BYTES,
    DTYPES,
    MAX_HEADER,
    UNSIGNED,
    Entry,
    entries_of,
    layout_of_text,
)
from .trie import Tokens

FORMAT = "llm-mlx-promptcache/2"
SUFFIX = ".safetensors"
TEMPORARY = ".tmp-"

_MOST_AT_ONCE = 512  # buffers of one call; systems take 1,024
_AHEAD = 1 << 20  # bytes; of more at once Linux reads only as much as the device takes in a request


class DamagedSpan(ValueError):
    """A span's file that is not what was written: told in one line, taken as a miss."""


class Head(NamedTuple):
    """Where a span stands on its path, and its tokens: none of them in a checkpoint."""

    namespace: str
    parent: str
    start: int
    tier: str
    layout: Layout
    tokens: Tokens[int]
    resumes: bool


class Tensor(NamedTuple):
    """One array as bytes of the host: no MLX is needed to write it, so any thread may."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    raw: memoryview


class Draft(NamedTuple):
    """A span to be stored: the whole path to its end, and its content.

    `pieces` are the arrays that the tensors share their memory with, for who needs them before
    they are stored; none of a checkpoint.
    """

    namespace: str
    layout: Layout
    path: Tokens[int]
    start: int
    tier: str
    tensors: list[Tensor]
    resumes: bool
    pieces: Sequence[Piece | None] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the content."""
        return sum(tensor.raw.nbytes for tensor in self.tensors)


def host_tensors(pieces: Sequence[Piece | None]) -> list[Tensor]:
    """A span's arrays, evaluated, as bytes; they share the arrays' memory and keep it alive."""
    return [
        _tensor(f"layer.{layer}.{index}", values)
        for layer, piece in enumerate(pieces)
        for index, values in enumerate(piece or ())
        if values is not None
    ]


def write_span(
    folder: Path, head: Head, tensors: Sequence[Tensor], files: Files
) -> tuple[str, int]:
    """Write a span under a new random name; returns that name's stem and the file's bytes.

    The name tells nothing of the content, and is not there before the whole file is.
    """
    stem = secrets.token_hex(16)
    temporary = folder / f"{TEMPORARY}{os.getpid()}-{stem}"
    try:
        with files.create(temporary) as file:
            size = _write_body(file, head, tensors)
        files.replace(temporary, folder / (stem + SUFFIX))
    except BaseException:
        with suppress(OSError):
            files.unlink(temporary)
        raise
    return stem, size


class OpenSpan:
    """A span's file while it is read: the head at once, layers in their order, then the digest.

    What `layers` gives is not to be believed before `verify` has passed. DamagedSpan or OSError
    where the file is not whole and ours.
    """

    def __init__(self, path: Path, files: Files) -> None:
        self.name = path.name
        self.broken: Exception | None = None
        self._descriptor = files.open(path)
        try:
            self.size = self._checked_size()
            self._digest = xxhash.xxh3_128()
            header = self._header()
            try:
                self._parse(header)
            except (KeyError, TypeError, ValueError, RecursionError, OverflowError) as error:
                raise DamagedSpan(f"{self.name}: {type(error).__name__}: {error}") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read_ahead(self) -> None:
        """Tell the system that all of the file is wanted soon."""
        if hasattr(os, "posix_fadvise"):
            for start in range(0, self.size, _AHEAD):
                os.posix_fadvise(self._descriptor, start, _AHEAD, os.POSIX_FADV_WILLNEED)

    def extent(self, first: int, last: int) -> tuple[int, int]:
        """The bytes of the layers [first, last) in the file's data."""
        return self._begins[first], self._begins[last]

    def outline(self) -> list[Piece | None]:
        """Pieces as far as one can plan with them: not read, they have nothing but a shape."""
        return [self._piece(layer, lambda entry: entry) for layer in range(len(self.head.layout))]

    def read_into(self, buffers: Sequence[memoryview]) -> None:
        """Read on into these, which hold what comes next in the file."""
        try:
            self._read_into(buffers)
        except (OSError, DamagedSpan) as error:
            self.broken = error
            raise

    def _read_into(self, buffers: Sequence[memoryview]) -> None:
        for first in range(0, len(buffers), _MOST_AT_ONCE):
            now = buffers[first : first + _MOST_AT_ONCE]
            read = os.readv(self._descriptor, now) if now else 0
            for buffer in now:
                read = self._rest(buffer, read)
                self._digest.update(buffer)

    def _rest(self, buffer: memoryview, read: int) -> int:
        """See to it that a buffer is full, of which a call read so much; returns what is over."""
        while read < buffer.nbytes:  # a call reads at most 2 GB
            more = os.readv(self._descriptor, [buffer[read:]])
            if not more:
                raise DamagedSpan(f"{self.name} shrank while it was read")
            read += more
        return read - buffer.nbytes

    def pieces(self, first: int, last: int, data: mx.array) -> list[Piece | None]:
        """The pieces of layers [first, last) out of the bytes of their extent."""
        begin = self._begins[first]
        views: dict[mx.Dtype, mx.array] = {}

        def cut(entry: Entry) -> mx.array:
            return _cut(entry, data, entry.begin - begin, views)

        return [self._piece(layer, cut) for layer in range(first, last)]

    def entries(self, layer: int) -> list[Entry | None]:
        """What is stored of each array of a layer."""
        return self._entries[layer]

    def verify(self) -> None:
        """After all layers are read: DamagedSpan unless they are what was written."""
        expected = os.read(self._descriptor, DIGEST_BYTES + 1)
        if self._digest.digest() != expected:
            raise DamagedSpan(f"{self.name}: its digest does not match its content")

    def _checked_size(self) -> int:
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise DamagedSpan(f"{self.name} is not a regular file of this user")
        if status.st_mode & 0o077:
            raise DamagedSpan(f"{self.name} can be read or written by other users")
        if status.st_size <= 8 + DIGEST_BYTES:
            raise DamagedSpan(f"{self.name} has {status.st_size} bytes")
        return status.st_size

    def _header(self) -> bytes:
        start = self._read(8)
        length = int.from_bytes(start, "little")
        if not 2 <= length <= min(MAX_HEADER, self.size - 8 - DIGEST_BYTES):
            raise DamagedSpan(f"{self.name} has a header of {length} bytes")
        return self._read(length)

    def _parse(self, text: bytes) -> None:
        header = json.loads(text)
        metadata = header.pop("__metadata__")
        if metadata["format"] != FORMAT:
            raise ValueError(f"format {metadata['format']!r}, not {FORMAT!r}")
        layout = layout_of_text(metadata["layout"])
        tensors = entries_of(header, layout, self.size - 8 - len(text))
        self._entries = tensors[1:-1]
        self._begins = [0] * len(layout)
        at = tensors[0][0].end if tensors[0][0] is not None else 0
        for layer, entries in enumerate(self._entries):
            self._begins[layer] = at
            at = next((e.end for e in reversed(entries) if e is not None), at)
        self._begins.append(at)
        tokens = array("I")
        tokens.frombytes(self._read(self._begins[0]))
        self.head = Head(
            namespace=metadata["namespace"],
            parent=metadata["parent"],
            start=int(metadata["start"]),
            tier=metadata["tier"],
            layout=layout,
            tokens=tokens,
            resumes=metadata["resumes"] == "1",
        )

    def _read(self, count: int) -> bytes:
        block = os.read(self._descriptor, count)
        if len(block) != count:
            raise DamagedSpan(f"{self.name} shrank while it was read")
        self._digest.update(block)
        return block

    def _piece(self, layer: int, make: Any) -> Piece | None:
        entries = self._entries[layer]
        if entries.count(None) == len(entries):
            return None
        return tuple(None if entry is None else make(entry) for entry in entries)


def read_span(path: Path, files: Files | None = None) -> tuple[Head, list[Piece | None]]:
    """All of a span's file, verified; DamagedSpan or OSError where it is not whole and ours."""
    span = OpenSpan(path, files or Files())
    try:
        layers = len(span.head.layout)
        begin, end = span.extent(0, layers)
        data = empty([end - begin])[0]
        span.read_into([memoryview(cast("Any", data))[: end - begin]])
        span.verify()
        pieces = span.pieces(0, layers, data)
        mx.eval([a for piece in pieces for a in piece or () if a is not None])
        return span.head, pieces
    finally:
        span.close()


def empty(sizes: Sequence[int]) -> list[mx.array]:
    """Buffers of bytes that a file can be read into; of whole words, so that all types fit."""
    buffers = [mx.zeros((max(size + 7, 8) // 8 * 8,), mx.uint8) for size in sizes]
    mx.eval(buffers)
    return buffers


def _write_body(file: Any, head: Head, tensors: Sequence[Tensor]) -> int:
    tokens = Tensor("tokens", "U32", (len(head.tokens),), memoryview(head.tokens).cast("B"))
    header: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT,
            "namespace": head.namespace,
            "parent": head.parent,
            "start": str(head.start),
            "tier": head.tier,
            "layout": json.dumps(layout_to_json(head.layout)),
            "resumes": str(int(head.resumes)),
        }
    }
    offset = 0
    for name, dtype, shape, raw in (tokens, *tensors):
        end = offset + raw.nbytes
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    end = offset + DIGEST_BYTES
    header["digest"] = {"dtype": "U8", "shape": [DIGEST_BYTES], "data_offsets": [offset, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = xxhash.xxh3_128()
    start = memoryview(len(text).to_bytes(8, "little") + text)
    for block in (start, tokens.raw, *(tensor.raw for tensor in tensors)):
        digest.update(block)
        _write_all(file, block)
    _write_all(file, digest.digest())
    return 8 + len(text) + end


def _write_all(file: Any, block: bytes | memoryview) -> None:
    rest = memoryview(block)
    while rest.nbytes:  # an unbuffered write may take less, and tells how much
        rest = rest[file.write(rest) :]


def _tensor(name: str, values: mx.array) -> Tensor:
    dtype, letter = DTYPES[values.dtype]
    # Python has no bfloat16, so the bits travel as unsigned integers of the same width.
    plain = values if values.dtype == mx.bool_ else values.view(UNSIGNED[letter])
    bits = mx.contiguous(plain) if values.ndim else plain
    mx.eval(bits)
    raw = memoryview(cast("Any", bits)).cast("B") if bits.size else memoryview(b"")
    return Tensor(name, dtype, tuple(values.shape), raw)


def _cut(entry: Entry, data: mx.array, begin: int, views: dict[mx.Dtype, mx.array]) -> mx.array:
    """One tensor as a view of the bytes read; copied where its type does not fall on them."""
    count = entry.end - entry.begin
    if not count:
        return mx.zeros(entry.shape, entry.dtype)
    width = entry.dtype.size
    if begin % width or entry.dtype == mx.bool_:
        raw = memoryview(cast("Any", data))[begin : begin + count].tobytes()
        letter = DTYPES[entry.dtype][1]
        bits = mx.array(cast("Any", memoryview(raw)).cast(letter, entry.shape or (1,)))
        typed = bits.astype(mx.bool_) if entry.dtype == mx.bool_ else bits.view(entry.dtype)
        return typed.reshape(entry.shape)
    if entry.dtype not in views:
        views[entry.dtype] = data.view(entry.dtype)
    strides = []
    step = 1
    for size in reversed(entry.shape):
        strides.append(step)
        step *= size
    return mx.as_strided(views[entry.dtype], entry.shape, strides[::-1], begin // width)
