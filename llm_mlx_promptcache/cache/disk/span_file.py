"""One span as one immutable file: written privately, published by rename, verified when read.

The file is a valid safetensors file with a digest of its header, tokens and rows, and behind that
of its ends, if its layers have any. Digests are against accidents; owner and mode decide who may
write, so they are the fast xxh3. The file's order: docs/disk.md.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import mlx.core as mx

from ..layers.errors import UnknownKind
from ..layers.layout import Layout
from ..layers.pieces import Piece
from ..span import DamagedEnds, DamagedSpan, Head, StoredTensor, Tensor
from .coded_rows import CodedRows
from .file_ids import PACK_SUFFIX, id_of, span_path
from .files import Files
from .parted_rows import Entries, PartedRows, without_ends
from .span_bytes import DIGEST_BYTES, Origin, SpanBytes
from .span_header import (
    CODED_FORMAT,
    FORMAT,
    MAX_HEADER,
    PACK_FORMAT,
    Member,
    decoded_entries,
    head_from,
    heads_of,
    layout_from_metadata,
    members_from,
    metadata_about,
    metadata_of,
    shares_of,
)
from .tensor_places import (
    DTYPES,
    UNSIGNED,
    TensorShape,
    ends_begin,
    entries_of,
    header_of,
    names_of_ends,
)
from .unpublished import ExportTarget, UnpublishedFile


def host_tensors(*spans: Sequence[Piece | None]) -> list[list[Tensor]]:
    """Each span's arrays as bytes; they share the arrays' memory and keep it alive.

    They are evaluated together: one wait, however many spans.
    """
    found = [
        [
            (f"layer.{layer}.{index}", values, _bits(values))
            for layer, piece in enumerate(pieces)
            for index, values in enumerate(piece or ())
            if values is not None
        ]
        for pieces in spans
    ]
    mx.eval([bits for tensors in found for _, _, bits in tensors])
    return [[_tensor(*each) for each in tensors] for tensors in found]


class UnpublishedSpan(UnpublishedFile):
    """A span's file under a private name, whole, until `publish`."""

    def __init__(
        self,
        folder: Path,
        head: Head,
        tensors: Sequence[Tensor],
        files: Files,
        target: ExportTarget | None = None,
    ) -> None:
        self._about = metadata_about(target.about) if target is not None else {}
        super().__init__(folder, span_path if target is None else target.named, files)
        try:
            self._write_body(head, tensors)
        except BaseException:
            self.close()
            raise

    def _write_body(self, head: Head, tensors: Sequence[Tensor]) -> None:
        behind = names_of_ends(head.layout)
        ends = [tensor for tensor in tensors if behind and tensor.name in behind]
        rows = [tensor for tensor in tensors if not behind or tensor.name not in behind]
        said = metadata_of(head, self.file_id) | self._about
        of_ends = _shapes(ends) if behind is not None else None
        self.put(header_of(said, len(head.tokens), _shapes(rows), of_ends))
        digest = self.digest_so_far()
        for block in (memoryview(head.tokens).cast("B"), *(tensor.raw for tensor in rows)):
            self.put(block)
        self.put_digest()
        if behind is None:
            return
        self.go_on_from(digest)
        for tensor in ends:
            self.put(tensor.raw)
        self.put_digest()


class FileSays(NamedTuple):
    """A file's own record: its bytes, the heads of its spans, and the bytes of each.

    `spoiled` if its states and windows were seen to be damaged, and nothing else.
    """

    size: int
    heads: dict[str, Head]
    shares: dict[str, int]
    spoiled: DamagedEnds | None = None


class OpenSpan:
    """A file while it is read: the head at once, layers in their order, then digests.

    It holds one span, or a pack of several of one path; then its head is that of one span of all
    their tokens, and `members` lists them.

    The output of `layers` is not to be trusted before `verify` has passed. DamagedSpan if the file
    is not whole and ours, OSError if the system can't read it just now, UnknownKind if it is whole
    and its layers are unknown here.
    """

    def __init__(self, path: Path, files: Files, origin: Origin = Origin.FOLDER) -> None:
        self.name = path.name
        self.broken: DamagedSpan | None = None
        self.members: list[Member] = []
        self.coded = False
        self._file_id = id_of(path.name)
        self._is_pack = path.name.endswith(PACK_SUFFIX)
        self._bytes = SpanBytes(path, files, origin)
        self._rows: SpanBytes | CodedRows | PartedRows = self._bytes
        self._ends_begin: int | None = None
        self.size = self._bytes.size
        try:
            header = self._header()
            try:
                self._parse(header)
            except UnknownKind as unknown:
                try:
                    self._bytes.verify_rest()
                except DamagedEnds as error:  # without its kinds they can't be taken out of it
                    raise UnknownKind(f"{unknown}; and {error}") from None
                raise
            except DamagedSpan:
                raise
            except (KeyError, TypeError, ValueError, RecursionError, OverflowError) as error:
                raise DamagedSpan(f"{self.name}: {type(error).__name__}: {error}") from None
        except BaseException:
            self.close()
            raise

    @property
    def heads(self) -> dict[str, Head]:
        """The heads of all spans in the file, by their file ids, in the order of their path."""
        return heads_of(self.head, self.members) if self.members else {self._file_id: self.head}

    @property
    def shares(self) -> dict[str, int]:
        """The file's bytes that count as each span's."""
        if not self.members:
            return {self._file_id: self.size}
        shares = shares_of(self.size, [member.length for member in self.members])
        return dict(zip(self.heads, shares, strict=True))

    def close(self) -> None:
        """Close the file."""
        self._bytes.close()

    def pause(self) -> None:
        """Release the descriptor until the next read, which goes on from the same place."""
        self._bytes.pause()

    def leave_ends(self) -> None:
        """Have no states and windows, if they can be left unread; before any layer is read."""
        if self._ends_begin is not None:
            self._bytes.leave_ends()
            self.size = self._bytes.wanted
            self._rows = self._bytes
            self._place(without_ends(self._stored, self._ends_begin))

    def read_ahead(self) -> None:
        """Tell the system that all of it is wanted soon."""
        self._bytes.read_ahead()

    def extent(self, first: int, last: int) -> tuple[int, int]:
        """The bytes of the layers [first, last) in the file's data."""
        return self._begins[first], self._begins[last]

    def outline(self) -> list[Piece | None]:
        """Pieces to plan with: not read, they have nothing but a shape."""
        return [self._piece(layer, lambda entry: entry) for layer in range(len(self.head.layout))]

    def read_into(self, buffers: Sequence[memoryview]) -> None:
        """Read on into these, which are next in the file."""
        try:
            self._rows.read_into(buffers)
        except DamagedSpan as error:
            self.broken = error
            raise

    def pieces(self, first: int, last: int, data: mx.array) -> list[Piece | None]:
        """The pieces of layers [first, last) out of the bytes of their extent."""
        begin = self._begins[first]
        views: dict[mx.Dtype, mx.array] = {}

        def cut(entry: StoredTensor) -> mx.array:
            return _cut(entry, data, entry.begin - begin, views)

        return [self._piece(layer, cut) for layer in range(first, last)]

    def entries(self, layer: int) -> list[StoredTensor | None]:
        """The stored arrays of a layer."""
        return self._entries[layer]

    def verify(self) -> None:
        """Check after all layers are read: DamagedSpan unless they are as they were written."""
        self._bytes.verify()

    def verify_rest(self) -> None:
        """Verify without using the layers: they are read in blocks and dropped."""
        self._bytes.verify_rest()

    def _header(self) -> bytes:
        start = self._bytes.read_undigested(8)
        length = int.from_bytes(start, "little")
        if not 2 <= length <= min(MAX_HEADER, self.size - 8 - DIGEST_BYTES):
            raise DamagedSpan(f"{self.name} has a header of {length} bytes")
        return start + self._bytes.read_undigested(length)

    def _parse(self, text: bytes) -> None:
        header = json.loads(text[8:])
        metadata = header.pop("__metadata__")
        self.coded = metadata["format"] == CODED_FORMAT
        (self._bytes.digest_last if self.coded else self._bytes.digest)(text)
        data_bytes = self.size - len(text)
        # Before its layers are known: a file of unknown ones is verified as well.
        self._ends_begin = ends_begin(header, data_bytes)
        if self._ends_begin is not None:
            self._bytes.part(len(text) + self._ends_begin)
        layout = self._layout(metadata)
        parted = metadata["format"] == FORMAT and names_of_ends(layout) is not None
        self._arrange(metadata, entries_of(header, layout, data_bytes, parted=parted))
        tokens = array("I")
        tokens.frombytes(self._bytes.read(self._tokens_end))
        self.head = head_from(metadata, layout, tokens)
        if self._is_pack:
            self.members = members_from(metadata, self.head)

    def _arrange(self, metadata: dict[str, Any], tensors: Entries) -> None:
        """Have a file's arrays read in the order of its layers."""
        if self.coded:
            tensors, arrays = decoded_entries(metadata, tensors)
            self._rows = CodedRows(self._bytes, arrays)
        self._tokens_end = tensors[0][0].end if tensors[0][0] is not None else 0
        self._stored = tensors[1:-1]
        if self._ends_begin is None:
            self._place(self._stored)
        else:
            parted = PartedRows(self._bytes, self._stored, self._tokens_end, self._ends_begin)
            self._rows = parted
            self._place(parted.entries)

    def _place(self, entries: Entries) -> None:
        """Take these for the arrays that are read, one behind the other."""
        self._entries = entries
        self._begins: list[int] = []
        at = self._tokens_end
        for row in entries:
            self._begins.append(at)
            at = next((e.end for e in reversed(row) if e is not None), at)
        self._begins.append(at)

    def _layout(self, metadata: dict[str, Any]) -> Layout:
        """The layers that a header says, if it is that of this file; ValueError."""
        formats = (PACK_FORMAT, CODED_FORMAT) if self._is_pack else (FORMAT,)
        return layout_from_metadata(metadata, self._file_id, formats)

    def _piece(self, layer: int, make: Any) -> Piece | None:
        entries = self._entries[layer]
        if entries.count(None) == len(entries):
            return None
        return tuple(None if entry is None else make(entry) for entry in entries)


def said_by(path: Path, files: Files, *, verified: bool) -> FileSays:
    """A file's own record of its spans; if `verified`, all of it was read."""
    span = OpenSpan(path, files)
    spoiled = None
    try:
        if verified:
            span.verify_rest()
    except DamagedEnds as error:
        if not len(span.head.tokens):  # a checkpoint has nothing else
            raise
        spoiled = error.with_traceback(None)
    finally:
        span.close()
    return FileSays(span.size, span.heads, span.shares, spoiled)


def empty(sizes: Sequence[int], stream: Any = None) -> list[mx.array]:
    """Buffers of bytes that a file can be read into; of whole words, so that all types fit.

    They are not made yet.
    """
    return [mx.zeros((max(size + 7, 8) // 8 * 8,), mx.uint8, stream=stream) for size in sizes]


def _bits(values: mx.array) -> mx.array:
    """An array's bits in their order, as unsigned integers: Python has no bfloat16."""
    _, letter = DTYPES[values.dtype]
    plain = values if values.dtype == mx.bool_ else values.view(UNSIGNED[letter])
    return mx.contiguous(plain) if values.ndim else plain


def _shapes(tensors: Sequence[Tensor]) -> list[TensorShape]:
    return [TensorShape(t.name, t.dtype, t.shape, t.raw.nbytes) for t in tensors]


def _tensor(name: str, values: mx.array, bits: mx.array) -> Tensor:
    raw = memoryview(cast("Any", bits)).cast("B") if bits.size else memoryview(b"")
    return Tensor(name, DTYPES[values.dtype][0], tuple(values.shape), raw)


def _cut(
    entry: StoredTensor, data: mx.array, begin: int, views: dict[mx.Dtype, mx.array]
) -> mx.array:
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
