"""The kinds of layer: a span's piece of one layer, and the places where a path can resume.

Each kind is a small value; equal kinds are cut, split and joined alike. The shapes of mlx-lm's
cache objects are known here and in `rewinding.py`, and nowhere else. Its classes are imported when
a layer is made: reading stored layers does not need mlx-lm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import mlx.core as mx

from .pieces import Piece, View, copied, joined, owned, rows_in, rows_of, runs, used

Layer = Any  # one of mlx-lm's cache objects, which have no common type


class LayerKind(Protocol):
    """One kind of layer. Implementations are frozen dataclasses of plain settings."""

    name: ClassVar[str]
    anywhere: ClassVar[bool]  # whether a path can resume at any token that is held

    @property
    def arity(self) -> int:
        """The number of arrays in a piece."""

    def position(self, layer: Layer) -> int | None:
        """The number of tokens the layer has seen; None if it does not count them."""

    def cut(self, layer: Layer, at: int, start: int, end: int) -> Piece | None:
        """The piece of a span [start, end), if the layer, after `at` tokens, still has it."""

    def missing(self, piece: Piece | None, length: int) -> bool:
        """True if a span of `length` tokens could hold more of this layer than the piece does."""

    def split(self, piece: Piece, length: int, at: int) -> tuple[Piece | None, Piece | None]:
        """The piece of a span of `length` tokens, cut after `at` of them; no memory is shared."""

    def thinned(self, piece: Piece) -> Piece | None:
        """The part of a piece to keep once its span's end is no place to resume any more."""

    def resumable(self, views: Sequence[View], limit: int) -> int:
        """The longest prefix, at most `limit`, at which the layer can resume."""

    def join(self, views: list[View], count: int, headroom: int) -> Layer:
        """A new layer at token `count`, with room for `headroom` more; 0 < count.

        The list of views may be emptied on the way, to free rows that nobody else holds.
        """


@dataclass(frozen=True)
class KVRows:
    """Keys and values a token, [1, heads, tokens, width] each: `KVCache`, also latent attention."""

    name: ClassVar[str] = "rows"
    anywhere: ClassVar[bool] = True
    grows: ClassVar[bool] = True
    arity: ClassVar[int] = 2

    def position(self, layer: Layer) -> int | None:
        """The number of tokens the layer has seen."""
        return int(layer.offset)

    def cut(self, layer: Layer, at: int, start: int, end: int) -> Piece | None:
        """The rows [start, end), copied out of the layer's buffer."""
        if layer.keys is None or end > at:
            return None
        return tuple(copied(a[..., start:end, :]) for a in self.arrays(layer))

    def missing(self, piece: Piece | None, length: int) -> bool:
        """True if there are no rows at all."""
        return piece is None

    def split(self, piece: Piece, length: int, at: int) -> tuple[Piece | None, Piece | None]:
        """Both sides of row `at`."""
        return rows_of(piece, 0, at), rows_of(piece, at, length)

    def thinned(self, piece: Piece) -> Piece | None:
        """The piece itself: rows serve all tokens after them."""
        return piece

    def resumable(self, views: Sequence[View], limit: int) -> int:
        """The end of the rows that the views hold without a gap."""
        held = 0
        for view in views:
            if view.piece is None or view.start > held:
                break
            held = view.end
        return min(held, limit)

    def join(self, views: list[View], count: int, headroom: int) -> Layer:
        """All rows of the path, in one buffer."""
        parts = [used(v, v.start, min(v.end, count)) for v in views if v.start < count]
        views.clear()
        layer = self.empty()
        self.fill(layer, joined(parts, headroom * self.grows), count)
        return layer

    def empty(self) -> Layer:
        """A fresh layer of mlx-lm's class."""
        from mlx_lm.models.cache import KVCache

        return KVCache()

    def arrays(self, layer: Layer) -> Iterable[mx.array]:
        """The layer's buffers, rows on axis -2."""
        return layer.keys, layer.values

    def fill(self, layer: Layer, arrays: Sequence[mx.array], count: int) -> None:
        """Put buffers that hold `count` rows into a fresh layer."""
        layer.keys, layer.values = arrays
        layer.offset = count


@dataclass(frozen=True)
class PlainRows(KVRows):
    """`ConcatenateKVCache`: rows in a buffer without headroom."""

    name: ClassVar[str] = "plain_rows"
    grows: ClassVar[bool] = False

    def empty(self) -> Layer:
        """A fresh layer of mlx-lm's class."""
        from mlx_lm.models.cache import ConcatenateKVCache

        return ConcatenateKVCache()


@dataclass(frozen=True)
class QuantizedRows(KVRows):
    """`QuantizedKVCache`; a piece is (weights, scales, biases) of the keys, then of the values."""

    group_size: int
    bits: int

    name: ClassVar[str] = "quantized_rows"
    arity: ClassVar[int] = 6

    def empty(self) -> Layer:
        """A fresh layer of mlx-lm's class."""
        from mlx_lm.models.cache import QuantizedKVCache

        return QuantizedKVCache(self.group_size, self.bits)

    def arrays(self, layer: Layer) -> Iterable[mx.array]:
        """The layer's six buffers, rows on axis -2."""
        return *layer.keys, *layer.values

    def fill(self, layer: Layer, arrays: Sequence[mx.array], count: int) -> None:
        """Put six buffers that hold `count` rows into a fresh layer."""
        layer.keys, layer.values = tuple(arrays[:3]), tuple(arrays[3:])
        layer.offset = count


@dataclass(frozen=True)
class Window:
    """Rows of which the last `size` matter: `RotatingKVCache`.

    A span holds the last min(length, size) of its rows that the layer still had, so a path can
    resume where the last `size` rows before a token are all there. With `keep` > 0 mlx-lm's own
    answer depends on where chunks end once the buffer has wrapped, so only the part before is kept.
    """

    size: int
    keep: int = 0

    name: ClassVar[str] = "window"
    anywhere: ClassVar[bool] = False
    arity: ClassVar[int] = 2

    def position(self, layer: Layer) -> int | None:
        """The number of tokens the layer has seen."""
        return int(layer.offset)

    def cut(self, layer: Layer, at: int, start: int, end: int) -> Piece | None:
        """The last rows of [start, end) that matter and that the layer still holds."""
        if layer.keys is None or end > at or (self.keep and at > self.size):
            return None
        arrays = self.ordered(layer)
        oldest = at - rows_in(arrays)
        first = max(start, end - self.size, oldest)
        return rows_of(arrays, first - oldest, end - oldest)

    def missing(self, piece: Piece | None, length: int) -> bool:
        """True if the last rows that matter are not all there."""
        return piece is None or rows_in(piece) < min(length, self.size)

    def split(self, piece: Piece, length: int, at: int) -> tuple[Piece | None, Piece | None]:
        """The last rows of each side, as far as the piece had them."""
        held = rows_in(piece)
        border = max(0, held - (length - at))
        return rows_of(piece, 0, border), rows_of(piece, border, held)

    def thinned(self, piece: Piece) -> Piece | None:
        """The piece itself: rows are never held twice along a path, thinning would gain little."""
        return piece

    def resumable(self, views: Sequence[View], limit: int) -> int:
        """The last token before which a whole window of rows is held."""
        # One row before the wrap: there mlx-lm's next chunk drops the first row that is not kept.
        limit = min(limit, self.size - 1) if self.keep else limit
        for first, last in reversed(runs(views)):
            end = min(last, limit)
            if end > first and (first == 0 or end - first >= self.size):
                return end
        return 0

    def join(self, views: list[View], count: int, headroom: int) -> Layer:
        """The window before token `count`, in temporal order, exactly as long as it must be."""
        first = max(0, count - self.size)
        parts = [
            used(view, max(first, view.start), min(view.end, count))
            for view in views
            if view.start < count and view.end > first
        ]
        # Headroom would be taken for rows: mlx-lm reads a window's length off its buffer.
        layer = self.empty()
        self.fill(layer, joined(parts, 0), count)
        return layer

    def empty(self) -> Layer:
        """A fresh layer of mlx-lm's class."""
        from mlx_lm.models.cache import RotatingKVCache

        return RotatingKVCache(self.size, self.keep)

    def ordered(self, layer: Layer) -> Piece:
        """The layer's rows in temporal order; the last one is that of the last token seen."""
        return tuple(layer._temporal_order(a) for a in (layer.keys, layer.values))

    def fill(self, layer: Layer, arrays: Sequence[mx.array], count: int) -> None:
        """Put the rows of a window into a fresh layer."""
        layer.keys, layer.values = arrays
        layer.offset, layer._idx = count, arrays[0].shape[-2]


@dataclass(frozen=True)
class Chunked(Window):
    """`ChunkedKVCache`: attention within chunks, which never needs more than one chunk of rows."""

    name: ClassVar[str] = "chunked"

    def empty(self) -> Layer:
        """A fresh layer of mlx-lm's class."""
        from mlx_lm.models.cache import ChunkedKVCache

        return ChunkedKVCache(self.size)

    def ordered(self, layer: Layer) -> Piece:
        """The layer's rows without the buffer's slack."""
        held = layer.offset - layer.start_position
        return layer.keys[..., :held, :], layer.values[..., :held, :]

    def fill(self, layer: Layer, arrays: Sequence[mx.array], count: int) -> None:
        """Put rows into a fresh layer, which is told at which token they start."""
        layer.keys, layer.values = arrays
        layer.offset, layer.start_position = count, count - arrays[0].shape[-2]


@dataclass(frozen=True)
class State:
    """A state that can't be cut: `ArraysCache` of `arity` arrays, kept whole where it was taken."""

    arity: int

    name: ClassVar[str] = "state"
    anywhere: ClassVar[bool] = False

    def position(self, layer: Layer) -> int | None:
        """None: recurrent state does not count tokens; its place is kept with the checkpoint."""
        return None

    def cut(self, layer: Layer, at: int, start: int, end: int) -> Piece | None:
        """The whole state, if the layer stands at the span's end."""
        if end != at or layer.lengths is not None or layer.left_padding is not None:
            return None
        return owned(layer.cache)

    def missing(self, piece: Piece | None, length: int) -> bool:
        """True if there is no state."""
        return piece is None

    def split(self, piece: Piece, length: int, at: int) -> tuple[Piece | None, Piece | None]:
        """Nothing, and the state, which stays at the end."""
        return None, piece

    def thinned(self, piece: Piece) -> Piece | None:
        """Nothing: state only serves to resume where it was taken."""
        return None

    def resumable(self, views: Sequence[View], limit: int) -> int:
        """The last end of a span that holds state."""
        ends = (v.end for v in reversed(views) if v.piece is not None and v.end == v.span_end)
        return next((end for end in ends if end <= limit), 0)

    def join(self, views: list[View], count: int, headroom: int) -> Layer:
        """The state at `count`; arrays are shared, since models replace them and never write."""
        from mlx_lm.models.cache import ArraysCache

        layer = ArraysCache(self.arity)
        piece = next(v.piece for v in views if v.end == count == v.span_end)
        layer.cache = [a if a is None else a[...] for a in piece or ()]
        return layer


@dataclass(frozen=True)
class ListOf:
    """`CacheList`: several layers in one, each by its own kind; a piece is theirs in a row."""

    parts: tuple[LayerKind, ...]

    name: ClassVar[str] = "list"
    anywhere: ClassVar[bool] = False

    @property
    def arity(self) -> int:
        """The arrays of all parts."""
        return sum(part.arity for part in self.parts)

    def position(self, layer: Layer) -> int | None:
        """The count on which the parts agree; -1 if they don't."""
        pairs = zip(self.parts, layer.caches, strict=True)
        counts = {part.position(sub) for part, sub in pairs} - {None}
        return counts.pop() if len(counts) == 1 else -1 if counts else None

    def cut(self, layer: Layer, at: int, start: int, end: int) -> Piece | None:
        """The parts' pieces."""
        pairs = zip(self.parts, layer.caches, strict=True)
        return self.flat([part.cut(sub, at, start, end) for part, sub in pairs])

    def missing(self, piece: Piece | None, length: int) -> bool:
        """True if any part could hold more."""
        pairs = zip(self.parts, self.parted(piece), strict=True)
        return any(part.missing(sub, length) for part, sub in pairs)

    def split(self, piece: Piece, length: int, at: int) -> tuple[Piece | None, Piece | None]:
        """Each part split in its way."""
        halves = [
            (None, None) if sub is None else part.split(sub, length, at)
            for part, sub in zip(self.parts, self.parted(piece), strict=True)
        ]
        return self.flat([h[0] for h in halves]), self.flat([h[1] for h in halves])

    def thinned(self, piece: Piece) -> Piece | None:
        """The kept part of each piece."""
        pairs = zip(self.parts, self.parted(piece), strict=True)
        return self.flat([None if sub is None else part.thinned(sub) for part, sub in pairs])

    def resumable(self, views: Sequence[View], limit: int) -> int:
        """The longest prefix at which all parts can resume."""
        columns = self._columns(views)
        pairs = list(zip(self.parts, columns, strict=True))
        while limit > 0:
            reached = min(part.resumable(column, limit) for part, column in pairs)
            if reached == limit:
                break
            limit = reached
        return limit

    def join(self, views: list[View], count: int, headroom: int) -> Layer:
        """Each part joined in its way."""
        from mlx_lm.models.cache import CacheList

        columns = self._columns(views)
        pairs = zip(self.parts, columns, strict=True)
        return CacheList(*(part.join(column, count, headroom) for part, column in pairs))

    def _columns(self, views: Sequence[View]) -> list[list[View]]:
        rows = [(view, self.parted(view.piece)) for view in views]
        indices = range(len(self.parts))
        return [[view._replace(piece=subs[i]) for view, subs in rows] for i in indices]

    def parted(self, piece: Piece | None) -> list[Piece | None]:
        """The parts' pieces; None for a part without one."""
        found: list[Piece | None] = []
        start = 0
        for part in self.parts:
            sub = piece[start : start + part.arity] if piece is not None else ()
            found.append(sub if any(a is not None for a in sub) else None)
            start += part.arity
        return found

    def flat(self, pieces: Sequence[Piece | None]) -> Piece | None:
        """The parts' pieces in a row; None if there are none."""
        if all(piece is None for piece in pieces):
            return None
        pairs = zip(self.parts, pieces, strict=True)
        return tuple(a for part, piece in pairs for a in (piece or (None,) * part.arity))
