"""The kinds of layer: what a span keeps of each, how that is cut, split, joined and verified.

This is the one file of the cache that knows mlx-lm's cache classes. A span keeps a `Piece` a
layer; a `Part` places a span's pieces on a path; `resumable` and `join` make layers of them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import mlx.core as mx
from mlx_lm.models.cache import KVCache, QuantizedKVCache

Piece = tuple[mx.array, ...]
Layer = Any  # one of mlx-lm's cache objects; mlx-lm has no common type for them

# Evaluating piece by piece costs a synchronisation each, all at once costs their transient memory.
_EVAL_BYTES = 64 << 20


class Part(NamedTuple):
    """A run [start, end) of a path and the pieces of the span that it is, or begins.

    `span_end` is where that span ends: a path may leave it before. A piece is None where the
    span does not hold that layer.
    """

    start: int
    end: int
    span_end: int
    pieces: Sequence[Piece | None]


class View(NamedTuple):
    """One layer's piece in a `Part`."""

    start: int
    end: int
    span_end: int
    piece: Piece | None


@dataclass(frozen=True)
class Rows:
    """Per-token keys and values, cut anywhere: `KVCache`, also of latent attention.

    A piece is (keys, values), each [1, heads, tokens, width].
    """

    name: ClassVar[str] = "rows"
    arity: ClassVar[int] = 2

    def position(self, layer: Layer) -> int | None:
        """How many tokens the layer holds."""
        return int(layer.offset)

    def cut(self, layer: Layer, start: int, end: int) -> Piece | None:
        """The rows [start, end), copied out of the layer's buffer; None where it lacks them."""
        if layer.keys is None or end > layer.offset:
            return None
        return tuple(mx.contiguous(a[..., start:end, :]) for a in self.arrays(layer))

    def split(self, piece: Piece, at: int) -> tuple[Piece, Piece]:
        """A piece cut after `at` of its tokens; both halves own their memory."""
        left = tuple(mx.contiguous(a[..., :at, :]) for a in piece)
        return left, tuple(mx.contiguous(a[..., at:, :]) for a in piece)

    def resumable(self, views: Sequence[View], limit: int) -> int:
        """The longest prefix, at most `limit`, that the views hold without a gap."""
        held = 0
        for view in views:
            if view.piece is None or view.start > held:
                break
            held = view.end
        return min(held, limit)

    def join(self, views: Sequence[View], count: int, room: int) -> Layer:
        """A new layer that holds `count` tokens and has room for `room` more."""
        parts = []
        for view in views:
            if view.piece is not None and view.start < count:
                used = min(view.end, count) - view.start
                parts.append(
                    tuple(a if used == a.shape[-2] else a[..., :used, :] for a in view.piece)
                )
        # Array by array, so that only one of them is held twice at a time.
        joined = []
        for same in zip(*parts, strict=True):
            whole = _with_room(list(same), room)
            mx.eval(whole)
            joined.append(whole)
        layer = self.empty()
        self.fill(layer, joined, count)
        return layer

    def empty(self) -> Layer:
        """A fresh layer of mlx-lm's class."""
        return KVCache()

    def arrays(self, layer: Layer) -> Iterable[mx.array]:
        """The layer's buffers, rows on axis -2."""
        return layer.keys, layer.values

    def fill(self, layer: Layer, arrays: Sequence[mx.array], count: int) -> None:
        """Put buffers that hold `count` rows into a fresh layer."""
        layer.keys, layer.values = arrays
        layer.offset = count


@dataclass(frozen=True)
class QuantizedRows(Rows):
    """`QuantizedKVCache`; a piece is (weights, scales, biases) of the keys, then of the values."""

    group_size: int
    bits: int

    name: ClassVar[str] = "quantized_rows"
    arity: ClassVar[int] = 6

    def empty(self) -> Layer:
        """A fresh layer of mlx-lm's class."""
        return QuantizedKVCache(self.group_size, self.bits)

    def arrays(self, layer: Layer) -> Iterable[mx.array]:
        """The layer's six buffers, rows on axis -2."""
        return *layer.keys, *layer.values

    def fill(self, layer: Layer, arrays: Sequence[mx.array], count: int) -> None:
        """Put six buffers that hold `count` rows into a fresh layer."""
        layer.keys, layer.values = tuple(arrays[:3]), tuple(arrays[3:])
        layer.offset = count


LayerKind = Rows
Layout = tuple[LayerKind, ...]

_KINDS: dict[str, type[LayerKind]] = {kind.name: kind for kind in (Rows, QuantizedRows)}
_KIND_OF: dict[type, Callable[[Layer], LayerKind]] = {
    KVCache: lambda layer: Rows(),
    QuantizedKVCache: lambda layer: QuantizedRows(layer.group_size, layer.bits),
}


def layout_of(layers: Sequence[Layer]) -> Layout | str:
    """The kind of each layer, or in words why a model with such layers is not cached."""
    unknown = sorted({type(x).__name__ for x in layers if type(x) not in _KIND_OF})
    if unknown or not layers:
        return f"layers of class {', '.join(unknown)} are not cached" if unknown else "no layers"
    return tuple(_KIND_OF[type(layer)](layer) for layer in layers)


def layout_to_json(layout: Layout) -> list[Any]:
    """A layout as plain data; runs of equal kinds are counted."""
    runs: list[list[Any]] = []
    for kind in layout:
        described = [kind.name, asdict(kind)]
        if runs and runs[-1][1:] == described:
            runs[-1][0] += 1
        else:
            runs.append([1, *described])
    return runs


def layout_from_json(runs: Any) -> Layout:
    """The layout that `layout_to_json` described; ValueError for anything else."""
    try:
        kinds = [(int(count), _KINDS[name](**fields)) for count, name, fields in runs]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a description of layers: {error!r}") from None
    return tuple(kind for count, kind in kinds for _ in range(count))


def position_of(layout: Layout, layers: Sequence[Layer]) -> int:
    """How many tokens all the layers hold; ValueError where they disagree with the layout."""
    found = layout_of(layers)
    if found != layout:
        raise ValueError(f"layers are of another model: {_brief(found)}, not {_brief(layout)}")
    positions = {kind.position(layer) for kind, layer in zip(layout, layers, strict=True)}
    if len(positions) != 1:
        raise ValueError(f"layers hold different numbers of tokens: {sorted(map(str, positions))}")
    return positions.pop() or 0


def cut(layout: Layout, layers: Sequence[Layer], start: int, end: int) -> list[Piece | None]:
    """What a span [start, end) keeps of each layer, evaluated, owning its memory."""
    pairs = zip(layout, layers, strict=True)
    return _evaluated(kind.cut(layer, start, end) for kind, layer in pairs)


def split(
    layout: Layout, pieces: Sequence[Piece | None], at: int
) -> tuple[list[Piece | None], list[Piece | None]]:
    """A span's pieces, cut after `at` of its tokens."""
    halves = [
        (None, None) if piece is None else kind.split(piece, at)
        for kind, piece in zip(layout, pieces, strict=True)
    ]
    return _evaluated(half[0] for half in halves), _evaluated(half[1] for half in halves)


def resumable(layout: Layout, parts: Sequence[Part], limit: int) -> int:
    """The longest prefix, at most `limit`, at which every layer can resume.

    The parts follow one another along a path, without gaps, from its start.
    """
    firsts = {kind: index for index, kind in reversed(list(enumerate(layout)))}
    views = {kind: _views(parts, index) for kind, index in firsts.items()}
    while True:
        reached = min((kind.resumable(views[kind], limit) for kind in firsts), default=0)
        if reached == limit or reached == 0:
            return reached
        limit = reached


def join(layout: Layout, parts: Sequence[Part], count: int, room: int) -> list[Layer]:
    """New layers that hold the first `count` tokens of a path, verified, with room for more."""
    layers = [kind.join(_views(parts, i), count, room) for i, kind in enumerate(layout)]
    verify(layout, layers, count)
    return layers


def after(layout: Layout, part: Part, at: int) -> Part:
    """What is left of a part from position `at` of its path on."""
    if at <= part.start:
        return part
    _, right = split(layout, part.pieces, at - part.start)
    return Part(at, part.end, part.span_end, right)


def verify(layout: Layout, layers: Sequence[Layer], count: int) -> None:
    """ValueError unless every layer that has an offset holds exactly `count` tokens."""
    for index, (kind, layer) in enumerate(zip(layout, layers, strict=True)):
        if kind.position(layer) not in (None, count):
            got = kind.position(layer)
            raise ValueError(f"layer {index} holds {got} tokens where {count} are claimed")


def nbytes(pieces: Iterable[Piece | None]) -> int:
    """Bytes of all arrays of a span."""
    return sum(array.nbytes for piece in pieces if piece is not None for array in piece)


def _views(parts: Sequence[Part], layer: int) -> list[View]:
    return [View(p.start, p.end, p.span_end, p.pieces[layer]) for p in parts]


def _with_room(parts: list[mx.array], room: int) -> mx.array:
    if room > 0:
        shape = (*parts[0].shape[:-2], room, parts[0].shape[-1])
        parts = [*parts, mx.zeros(shape, parts[0].dtype)]
    # Never the stored array object itself: the model writes into its layers in place (law 9).
    return mx.concatenate(parts, axis=-2)


def _evaluated(pieces: Iterable[Piece | None]) -> list[Piece | None]:
    done: list[Piece | None] = []
    waiting: list[mx.array] = []
    size = 0
    for piece in pieces:
        done.append(piece)
        waiting.extend(piece or ())
        size += nbytes([piece])
        if size > _EVAL_BYTES:
            mx.eval(waiting)
            waiting, size = [], 0
    mx.eval(waiting)
    return done


def _brief(layout: Layout | str) -> str:
    if isinstance(layout, str):
        return layout
    return ", ".join(f"{count} x {name}" for count, name, _ in layout_to_json(layout))
