"""Restoring a path: its files are read side by side, some layers at a time, and verified last.

So beside the layers that are being built only a small part of the files is in memory, and the
system reads the rest of them ahead meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from enum import Enum, auto
from typing import Any, NamedTuple, cast

import mlx.core as mx

from ..layers.kinds import KVRows, Layer, LayerKind, ListOf, Window
from ..layers.layout import PathPart
from ..layers.pieces import Piece
from ..span import DamagedSpan, Query, StoredSpan, StoredTensor
from ..store import SpanReader, Store
from .descriptors import Few
from .span_file import empty

_GROUPS = 16  # a path is read in so many rounds; the bytes of one of them are held twice
_IN_PLACE = 5  # rounds where nothing is held twice: memory is got ready one round ahead
_LEAST = 8 << 20  # fewer bytes than this are not worth a round of their own


class Reading(Enum):
    """What became of a path's files."""

    WHOLE = auto()  # all were opened, and nothing is known to be wrong
    CUT_SHORT = auto()  # one could not be opened: the path ends before it
    REMOVED = auto()  # one was damaged or gone, and is not in the store any more


class Restore:
    """The files of a path beyond what memory holds, opened and planned with, then read."""

    def __init__(self, store: Store, query: Query) -> None:
        self._store = store
        self._query = query
        self._spans: list[tuple[list[StoredSpan], SpanReader]] = []  # several in a pack
        self.parts: list[PathPart] = []
        self.state = Reading.WHOLE
        self._few = Few()

    def open(self, spans: Sequence[StoredSpan], reached: int) -> None:
        """Open what lies after token `reached`, up to the first that can't be."""
        for one_file in _by_file([span for span in spans if span.end > reached]):
            self._few.make_room()
            opened = _opened(self._store, self._query, *one_file)
            if opened is None:
                self.state = Reading.CUT_SHORT
                return
            self._few.use(opened)
            self._spans.append((one_file, opened))
            end = opened.head.start + len(opened.head.tokens)
            start = max(one_file[0].start, reached)
            self.parts.append(PathPart(start, one_file[-1].end, end, opened.outline()))

    @property
    def nbytes(self) -> int:
        """Bytes to read: files are read whole, for their digest."""
        return sum(opened.size for _, opened in self._spans)

    @property
    def starts(self) -> list[int]:
        """Where the files of the parts start."""
        return [opened.head.start for _, opened in self._spans]

    def layers(self, count: int, headroom: int) -> list[Layer] | None:
        """The layers at token `count`, where all of them are rows and lie in files alone."""
        layout = self._query.layout
        in_place = all(isinstance(k, KVRows) and type(k).join is KVRows.join for k in layout)
        if not in_place or not self._spans or self.parts[0].start:
            return None
        if [part.start for part in self.parts] != self.starts:
            return None
        spans = [opened for _, opened in self._spans]
        if not all(_is_plain(entry) for i in range(len(layout)) for entry in spans[0].entries(i)):
            return None
        used = self.parts[: len(spans)]
        return list(_InPlace(spans, self._few, used, count, headroom).layers_read())

    def streamed(self, count: int) -> list[PathPart]:
        """The parts before token `count`, whose pieces can be asked for once, layer by layer."""
        for _, opened in self._spans[len([p for p in self.parts if p.start < count]) :]:
            opened.close()
        used = [part for part in self.parts if part.start < count]
        self._spans = self._spans[: len(used)]
        if not used:
            return []
        stream = _InPieces([opened for _, opened in self._spans], self._few)
        return [part._replace(pieces=_Pieces(stream, n)) for n, part in enumerate(used)]

    def verify(self) -> bool:
        """After all was read: whether it is what was written. What is not is gone."""
        good = True
        for spans, opened in self._spans:
            self._few.use(opened)
            try:
                opened.verify()
            except DamagedSpan as error:
                self._damaged(spans, error)
                good = False
            except OSError as error:
                self._unreadable(error)
                good = False
        if good and self._spans:
            self._store.used([span for spans, _ in self._spans for span in spans])
        return good

    def failed(self, error: Exception) -> bool:
        """Whether files were read when this went wrong.

        Those go that were seen to be damaged. What else fails (memory, the device, the joining)
        says nothing about a file: it stays.
        """
        for spans, opened in self._spans:
            if opened.broken is not None:
                self._damaged(spans, opened.broken)
        if self._spans and self.state is not Reading.REMOVED:
            self._unreadable(error)
        return bool(self._spans)

    # A traceback holds the frames in which buffers were filled: what is told goes without.

    def _damaged(self, spans: Sequence[StoredSpan], error: DamagedSpan) -> None:
        # What follows it in its file hangs on it.
        self._store.damaged(spans[0], error.with_traceback(None))
        self.state = Reading.REMOVED

    def _unreadable(self, error: Exception) -> None:
        if isinstance(error, FileNotFoundError) and self._is_one_gone():
            self.state = Reading.REMOVED
        else:
            self._store.unreadable(error.with_traceback(None))

    def _is_one_gone(self) -> bool:
        """Whether another process evicted one of the files meanwhile; the store sees it as well."""
        for (span, *_), _ in self._spans:
            self._few.make_room()
            opened = self._store.open(self._query.namespace, span, self._query.ids)
            if opened is None:
                return True
            opened.close()
        return False

    def close(self) -> None:
        """Let go of the files."""
        for _, opened in self._spans:
            opened.close()


def _is_plain(entry: StoredTensor | None) -> bool:
    return entry is not None and len(entry.shape) >= 2 and 0 not in entry.shape


class _Stream:
    """Several files, read in step, so many layers at a time."""

    def __init__(self, spans: Sequence[SpanReader], few: Few, rounds: int) -> None:
        self.spans = spans
        self._few = few
        self.layers = len(spans[0].head.layout)
        whole = sum(span.extent(0, self.layers)[1] - span.extent(0, 0)[1] for span in spans)
        self._round = max(whole // rounds, _LEAST)
        for span in spans:
            if few.holds(span):
                span.read_ahead()

    def rounds(self) -> Iterator[range]:
        """The layers of each round."""
        first = 0
        while first < self.layers:
            last = first + 1
            while last < self.layers and self._bytes(first, last + 1) <= self._round:
                last += 1
            yield range(first, last)
            first = last

    def read_into(self, span: SpanReader, buffers: list[memoryview]) -> None:
        """Read on in one of the files."""
        self._few.use(span)
        span.read_into(buffers)

    def _bytes(self, first: int, last: int) -> int:
        extents = [span.extent(first, last) for span in self.spans]
        return sum(end - begin for begin, end in extents)


class _InPieces(_Stream):
    """Files whose pieces are asked for once each, layer by layer."""

    def __init__(self, spans: Sequence[SpanReader], few: Few) -> None:
        super().__init__(spans, few, _GROUPS)
        # A list: a generator would hold this object, and this one the generator.
        self._coming = iter(list(self.rounds()))
        self._now = range(0)
        self._pieces: list[list[Piece | None]] = []

    def piece(self, number: int, layer: int) -> Piece | None:
        """One file's piece of a layer."""
        while layer not in self._now:
            self._read(next(self._coming))
        pieces, index = self._pieces[number], layer - self._now.start
        piece, pieces[index] = pieces[index], None
        return piece

    def _read(self, now: range) -> None:
        self._pieces.clear()
        extents = [span.extent(now.start, now.stop) for span in self.spans]
        buffers = empty([end - begin for begin, end in extents])
        for span, (begin, end), buffer in zip(self.spans, extents, buffers, strict=True):
            self.read_into(span, [memoryview(cast("Any", buffer))[: end - begin]])
            self._pieces.append(span.pieces(now.start, now.stop, buffer))
        self._now = now


class _Buffers(NamedTuple):
    """One array of a layer that is being filled: `lead` runs of rows of `width` bytes."""

    data: mx.array
    memory: memoryview
    lead: int
    stride: int
    width: int


class _InPlace(_Stream):
    """Files whose rows are read straight to where they belong in the layers, and nowhere else."""

    def __init__(
        self,
        spans: Sequence[SpanReader],
        few: Few,
        parts: Sequence[PathPart],
        count: int,
        headroom: int,
    ) -> None:
        super().__init__(spans, few, _IN_PLACE)
        self._parts = parts
        self._count = count
        self._headroom = headroom

    def layers_read(self) -> Iterator[Layer]:
        """The layers, in their order."""
        rounds = list(self.rounds())
        coming = self._prepared(rounds[0])
        for number, now in enumerate(rounds):
            prepared = coming
            mx.eval([made.data for arrays in prepared for made in arrays])
            if number + 1 < len(rounds):
                coming = self._prepared(rounds[number + 1])
                # Their memory is got ready on MLX's thread while this one reads.
                mx.async_eval(  # type: ignore[no-untyped-call]
                    [made.data for arrays in coming for made in arrays]
                )
            prepared = [[_mapped(made) for made in arrays] for arrays in prepared]
            for span, part in zip(self.spans, self._parts, strict=True):
                self._read(span, part, now, prepared)
            for layer in now:
                arrays = prepared[layer - now.start]
                yield self._layer(self.spans[0].head.layout[layer], arrays)
                arrays.clear()

    def _prepared(self, now: range) -> list[list[_Buffers]]:
        first = self.spans[0]
        return [
            [self._buffers(kind_of, entry) for entry in first.entries(layer) if entry is not None]
            for layer in now
            for kind_of in [first.head.layout[layer]]
        ]

    def _buffers(self, kind: Any, entry: StoredTensor) -> _Buffers:
        lead, width = math.prod(entry.shape[:-2]), entry.shape[-1] * entry.dtype.size
        rows = self._count + self._headroom * kind.grows
        shape = (*entry.shape[:-2], rows, entry.shape[-1])
        data = mx.zeros(shape, entry.dtype)
        return _Buffers(data, memoryview(b""), lead, rows * width, width)

    def _read(
        self, span: SpanReader, part: PathPart, now: range, prepared: list[list[_Buffers]]
    ) -> None:
        """One file's rows of some layers; what the path leaves out is read for the digest."""
        used = min(part.end, self._count) - part.start
        held = part.span_end - part.start
        slices: list[memoryview] = []
        for layer, arrays in zip(now, prepared, strict=True):
            for made, entry in zip(arrays, span.entries(layer), strict=True):
                lead, width = made.data.shape[:-2], made.data.shape[-1]
                expected = ((*lead, held, width), made.data.dtype)
                if entry is None or (entry.shape, entry.dtype) != expected:
                    span.broken = DamagedSpan(f"{span.name} has rows of another shape")
                    raise span.broken
                left = (held - used) * made.width
                memory, taken = made.memory, used * made.width
                for start in range(part.start * made.width, len(memory), made.stride):
                    slices.append(memory[start : start + taken])
                    if left:
                        # Not one buffer for all: each is still to be digested.
                        slices.append(memoryview(bytearray(left)))
        self.read_into(span, slices)

    def _layer(self, kind: Any, arrays: list[_Buffers]) -> Layer:
        layer = kind.empty()
        kind.fill(layer, [made.data for made in arrays], self._count)
        return layer


def _mapped(made: _Buffers) -> _Buffers:
    return made._replace(memory=memoryview(cast("Any", made.data)).cast("B"))


class _Pieces(Sequence[Piece | None]):
    """One file's pieces, as they come."""

    def __init__(self, stream: _InPieces, number: int) -> None:
        self._stream = stream
        self._number = number

    def __len__(self) -> int:
        return self._stream.layers

    def __getitem__(self, layer: int) -> Piece | None:  # type: ignore[override]
        return self._stream.piece(self._number, layer)

    def __iter__(self) -> Iterator[Piece | None]:
        return (self[layer] for layer in range(len(self)))


def outline_of_checkpoint(
    store: Store, query: Query, span: StoredSpan
) -> list[Piece | None] | None:
    """What a checkpoint holds, as far as one can plan with it; None where it can't be had."""
    opened = _opened(store, query, span)
    if opened is None:
        return None
    opened.close()
    return opened.outline()


def read_checkpoint(store: Store, query: Query, span: StoredSpan) -> list[Piece | None] | None:
    """What a checkpoint holds, verified; None where it is gone, damaged or can't be read."""
    opened = _opened(store, query, span)
    if opened is None:
        return None
    try:
        layers = len(opened.head.layout)
        begin, end = opened.extent(0, layers)
        (data,) = empty([end - begin])
        opened.read_into([memoryview(cast("Any", data))[: end - begin]])
        opened.verify()
        pieces = opened.pieces(0, layers, data)
        mx.eval([a for piece in pieces for a in piece or () if a is not None])
    except DamagedSpan as error:
        store.damaged(span, error)
        return None
    except (OSError, MemoryError, RuntimeError) as error:  # the system's, or MLX's: not the file's
        store.unreadable(error)
        return None
    finally:
        opened.close()
    store.used([span])
    return pieces


def _by_file(spans: Sequence[StoredSpan]) -> list[list[StoredSpan]]:
    """The spans of a path by the files that hold them, one behind the other."""
    found: list[list[StoredSpan]] = []
    for span in spans:
        if found and span.pack and found[-1][0].pack == span.pack:
            found[-1].append(span)
        else:
            found.append([span])
    return found


def _opened(store: Store, query: Query, span: StoredSpan, *more: StoredSpan) -> SpanReader | None:
    """The file of a span, and of `more`, if it holds what these layers would have kept of it."""
    opened = store.open(query.namespace, span, query.ids, more)
    if opened is None:
        return None
    layout = query.layout
    pairs = zip(layout, opened.outline(), strict=False)
    length = len(opened.head.tokens)
    if opened.head.layout == layout and all(_fits(kind, piece, length) for kind, piece in pairs):
        return opened
    opened.close()
    store.damaged(span, DamagedSpan(f"{opened.name} does not hold what its model keeps"))
    return None


def _fits(kind: LayerKind, piece: Piece | None, length: int) -> bool:
    """Whether a piece has the shape that its kind gives a span of so many tokens."""
    if piece is None or not isinstance(kind, KVRows | Window | ListOf):
        return True
    if isinstance(kind, ListOf):
        pairs = zip(kind.parts, kind.parted(piece), strict=True)
        return all(_fits(part, sub, length) for part, sub in pairs)
    if not all(array is not None and len(array.shape) >= 2 for array in piece):
        return False
    held = {array.shape[-2] for array in piece if array is not None}
    return (
        held == {length} if isinstance(kind, KVRows) else len(held) == 1 and max(held) <= kind.size
    )
