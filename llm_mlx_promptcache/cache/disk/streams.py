"""Files of a path read in step, some layers at a time, in pieces or into their places.

So beside the layers that are being built only a small part of the files is in memory, and the
system reads the rest of them ahead meanwhile.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import cycle
from typing import Any, NamedTuple, cast

import mlx.core as mx

from ..layers.kinds import Layer
from ..layers.layout import PathPart
from ..layers.pieces import Piece
from ..span import DamagedSpan, StoredTensor
from ..store import SpanReader
from .descriptors import Few
from .span_file import empty

# After which parts of its bytes each round of a path ends; those of one round are held twice.
_GROUPS = tuple(number / 16 for number in range(1, 17))
# The same where nothing is held twice. The system hands out memory more slowly than files are read
# into it, so what is read behind the last of it is little; each round is a wait for the device.
_IN_PLACE = (0.3, 0.55, 0.75, 0.9, 1.0)
_IN_PLACE_ON_CPU = tuple(number / 20 for number in range(1, 21))  # a wait costs little there
_LEAST = 4 << 20  # fewer bytes than this are not worth a round of their own


@cache
def _second_cpu_stream() -> Any:
    return mx.new_thread_local_stream(mx.cpu)


def is_on_cpu() -> bool:
    """True if MLX computes on the CPU."""
    return bool(mx.default_device() == mx.Device(mx.cpu, 0))


def streams_of_zeros() -> list[Any]:
    """The streams that new memory is asked of in turn; None is the default one.

    On a CPU most of a restore is the system handing out pages, which one thread alone does more
    slowly than another reads into them: there it is two of MLX's threads.
    """
    return [None, _second_cpu_stream()] if is_on_cpu() else [None]


class _Stream:
    """Several files, read in step, so many layers at a time."""

    def __init__(self, spans: Sequence[SpanReader], few: Few) -> None:
        self.spans = spans
        self._few = few
        self.layers = len(spans[0].head.layout)

    def rounds(self, ends: Sequence[float]) -> Iterator[range]:
        """The layers of each round, which ends after such a part of all bytes."""
        whole, first = self._bytes(0, self.layers), 0
        for end in ends:
            last = first
            while last < self.layers and (
                last == first
                or self._bytes(0, last + 1) <= whole * end
                or self._bytes(first, last + 1) <= _LEAST
            ):
                last += 1
            if last > first:
                yield range(first, last)
            first = last

    def read_ahead(self) -> None:
        """Tell the system that all of these files are wanted soon."""
        for span in self.spans:
            if self._few.holds(span):
                span.read_ahead()

    def read_into(self, span: SpanReader, buffers: list[memoryview]) -> None:
        """Read on in one of the files."""
        self._few.use(span)
        span.read_into(buffers)

    def _bytes(self, first: int, last: int) -> int:
        extents = [span.extent(first, last) for span in self.spans]
        return sum(end - begin for begin, end in extents)


class InPieces(_Stream):
    """Files whose pieces are asked for once each, layer by layer."""

    def __init__(self, spans: Sequence[SpanReader], few: Few) -> None:
        super().__init__(spans, few)
        # A list: a generator would hold this object, and this one the generator.
        self._rounds = deque(self.rounds(_GROUPS))
        self._ready: list[mx.array] = []  # the buffers of the next round, asked for in advance
        self._now = range(0)
        self.read_ahead()
        self._pieces: list[list[Piece | None]] = []

    def piece(self, number: int, layer: int) -> Piece | None:
        """One file's piece of a layer."""
        while layer not in self._now:
            self._read(self._rounds.popleft())
        pieces, index = self._pieces[number], layer - self._now.start
        piece, pieces[index] = pieces[index], None
        return piece

    def of(self, number: int) -> Sequence[Piece | None]:
        """One file's pieces, as they come."""
        return _Pieces(self, number)

    def _read(self, now: range) -> None:
        self._pieces.clear()
        buffers = self._ready or self._begun(now)
        # Before these are waited for, so that MLX's threads are never without work.
        self._ready = self._begun(self._rounds[0]) if self._rounds else []
        mx.eval(buffers)
        extents = self._extents(now)
        for span, (begin, end), buffer in zip(self.spans, extents, buffers, strict=True):
            self.read_into(span, [memoryview(cast("Any", buffer))[: end - begin]])
            self._pieces.append(span.pieces(now.start, now.stop, buffer))
        self._now = now

    def _begun(self, now: range) -> list[mx.array]:
        sizes = [end - begin for begin, end in self._extents(now)]
        buffers = empty(sizes, streams_of_zeros()[-1])
        mx.async_eval(buffers)  # type: ignore[no-untyped-call]
        return buffers

    def _extents(self, now: range) -> list[tuple[int, int]]:
        return [span.extent(now.start, now.stop) for span in self.spans]


class _Buffers(NamedTuple):
    """One array of a layer that is being filled: `lead` runs of rows of `width` bytes."""

    data: mx.array
    memory: memoryview
    lead: int
    stride: int
    width: int


class InPlace(_Stream):
    """Files whose rows are read straight into their places in the layers, and nowhere else."""

    def __init__(
        self,
        spans: Sequence[SpanReader],
        few: Few,
        parts: Sequence[PathPart],
        count: int,
        headroom: int,
    ) -> None:
        super().__init__(spans, few)
        self._parts = parts
        self._count = count
        self._headroom = headroom
        self._streams = cycle(streams_of_zeros())

    def layers_read(self) -> Iterator[Layer]:
        """The layers, in their order."""
        rounds = list(self.rounds(_IN_PLACE_ON_CPU if is_on_cpu() else _IN_PLACE))
        coming = self._begun(rounds[0])
        for number, now in enumerate(rounds):
            prepared = coming
            # Before the last is waited for, so that MLX's thread is never without work.
            coming = self._begun(rounds[number + 1]) if number + 1 < len(rounds) else []
            mx.eval([made.data for arrays in prepared for made in arrays])
            prepared = [[_mapped(made) for made in arrays] for arrays in prepared]
            for span, part in zip(self.spans, self._parts, strict=True):
                self._read(span, part, now, prepared)
            for layer in now:
                arrays = prepared[layer - now.start]
                yield self._layer(self.spans[0].head.layout[layer], arrays)
                arrays.clear()

    def _begun(self, now: range) -> list[list[_Buffers]]:
        """The arrays of a round; MLX's thread gets their memory ready from now on."""
        prepared = self._prepared(now)
        mx.async_eval(  # type: ignore[no-untyped-call]
            [made.data for arrays in prepared for made in arrays]
        )
        return prepared

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
        data = mx.zeros(shape, entry.dtype, stream=next(self._streams))
        return _Buffers(data, memoryview(b""), lead, rows * width, width)

    def _read(
        self, span: SpanReader, part: PathPart, now: range, prepared: list[list[_Buffers]]
    ) -> None:
        """Read one file's rows of some layers; rows outside the path are read for the digest."""
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

    def __init__(self, stream: InPieces, number: int) -> None:
        self._stream = stream
        self._number = number

    def __len__(self) -> int:
        return self._stream.layers

    def __getitem__(self, layer: int) -> Piece | None:  # type: ignore[override]
        return self._stream.piece(self._number, layer)

    def __iter__(self) -> Iterator[Piece | None]:
        return (self[layer] for layer in range(len(self)))
