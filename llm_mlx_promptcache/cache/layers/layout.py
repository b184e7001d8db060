"""A model's layers as a whole: their layout, and spans cut from them, split and joined again.

The content of a single layer is its kind's business (`kinds.py`); here all layers of a model are
taken together, verified and evaluated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import fields
from enum import Enum, auto
from functools import cache
from itertools import zip_longest
from typing import Any, NamedTuple, TypeGuard

import mlx.core as mx

from .kinds import (
    Chunked,
    KVRows,
    Layer,
    LayerKind,
    ListOf,
    PlainRows,
    QuantizedRows,
    State,
    Window,
)
from .own_state import NoRoundTrip, OwnState, own_state
from .pieces import Groups, Piece, View, arrays_of
from .plugins import call_plugins

Layout = tuple[LayerKind, ...]

_SIMPLE: tuple[type[Any], ...] = (
    KVRows,
    PlainRows,
    QuantizedRows,
    Window,
    Chunked,
    State,
    OwnState,
)
_KIND_OF: dict[type, Callable[[Layer], LayerKind]] = {}
_KINDS: dict[str, type[Any]] = {kind.name: kind for kind in _SIMPLE}


def _makers() -> dict[type, Callable[[Layer], LayerKind]]:
    """The makers of kinds, by the class of a layer: for mlx-lm's classes and those of plugins."""
    if not _KIND_OF:
        _KIND_OF.update(_makers_of_mlx_lm())
    return _KIND_OF


def _makers_of_mlx_lm() -> dict[type, Callable[[Layer], LayerKind]]:
    from mlx_lm.models.cache import (
        ArraysCache,
        CacheList,
        ChunkedKVCache,
        ConcatenateKVCache,
        KVCache,
        QuantizedKVCache,
        RotatingKVCache,
    )

    return {
        KVCache: lambda layer: KVRows(),
        ConcatenateKVCache: lambda layer: PlainRows(),
        QuantizedKVCache: lambda layer: QuantizedRows(layer.group_size, layer.bits),
        RotatingKVCache: lambda layer: Window(layer.max_size, layer.keep),
        ChunkedKVCache: lambda layer: Chunked(layer.chunk_size),
        ArraysCache: lambda layer: State(len(layer.cache)),
        CacheList: lambda layer: ListOf(tuple(kind_of(sub) for sub in layer.caches)),
    }


class NotCached(ValueError):
    """A model has layers that can't be kept faithfully; the message names them and says why."""


class PathPart(NamedTuple):
    """A run [start, end) of a path and the pieces of the span that it follows, to `span_end`."""

    start: int
    end: int
    span_end: int
    pieces: Sequence[Piece | None]


def kind_of(layer: Layer) -> LayerKind:
    """The kind of one layer, by its exact class (a subclass may behave differently); NotCached."""
    make = _makers().get(type(layer))
    if make is None:
        load_layer_kinds()
        make = _makers().get(type(layer), own_state)
    try:
        return make(layer)
    except NoRoundTrip as error:
        reason = f"layers of class {type(layer).__name__} can't be kept: {error}"
        raise NotCached(reason) from None


def register_layer_kind(
    layer_class: type, kind_class: type[Any], make: Callable[[Any], LayerKind]
) -> None:
    """Teach the cache a class of layers: `make` returns the kind, a `kind_class`, of one of them.

    ValueError if the class or the kind's name is taken: stored spans must keep their meaning.
    """
    makers = _makers()
    if makers.get(layer_class, make) is not make:
        raise ValueError(f"layers of class {layer_class.__name__} have a kind already")
    taken = {ListOf.name: ListOf, **_KINDS}.get(kind_class.name, kind_class)
    if taken is not kind_class:
        raise ValueError(f"a kind of layer named {kind_class.name!r} is there already")
    makers[layer_class] = make
    _KINDS[kind_class.name] = kind_class


@cache
def load_layer_kinds() -> None:
    """Ask the installed plugins for their kinds, once; one that fails is reported and left out."""
    call_plugins(register_layer_kind)


def layout_of(layers: Sequence[Layer]) -> Layout:
    """The kind of each layer; NotCached if one has none."""
    if not layers:
        raise NotCached("a model without layers has nothing to keep")
    return tuple(kind_of(layer) for layer in layers)


def layout_to_json(layout: Layout) -> list[Any]:
    """A layout as plain data; runs of equal kinds are counted."""
    runs: list[list[Any]] = []
    for kind in layout:
        described = _kind_to_json(kind)
        if runs and runs[-1][1] == described:
            runs[-1][0] += 1
        else:
            runs.append([1, described])
    return runs


def kind_class(name: str) -> type[Any] | None:
    """The class of the kinds of this name, those of plugins among them; None for no kind's name."""
    if name not in _KINDS:
        load_layer_kinds()
    return _KINDS.get(name)


def cut_anywhere(layout: Layout) -> bool:
    """True if a path can resume at every token, so that no checkpoints are needed."""
    return all(kind.anywhere for kind in layout)


class Cuts(Enum):
    """The places where a path can be cut to resume there, once its layers have gone on."""

    ANYWHERE = auto()
    IN_CHUNKS = auto()  # at each token of the chunk that they have just seen
    NOWHERE = auto()  # only where they stand


def cuts_of(layout: Layout) -> Cuts:
    """The places where such layers can be cut.

    Behind a chunk mlx-lm's windows hold its rows, and the window before it. Past the wrap they
    don't with `keep`; and a list of layers may do otherwise.
    """
    if cut_anywhere(layout):
        return Cuts.ANYWHERE
    windows = (kind for kind in layout if not kind.anywhere)
    whole = all(_is_window(kind) and not kind.keep for kind in windows)
    return Cuts.IN_CHUNKS if whole else Cuts.NOWHERE


def _is_window(kind: LayerKind) -> TypeGuard[Window]:
    return type(kind) in (Window, Chunked)


def position_of(layout: Layout, layers: Sequence[Layer]) -> int | None:
    """The number of tokens the layers have seen; None if none of them counts.

    ValueError if they are not of this layout, or disagree.
    """
    found = layout_of(layers)
    if found != layout:
        raise ValueError(f"layers are of another model: {_brief(found)}, not {_brief(layout)}")
    pairs = zip(layout, layers, strict=True)
    positions = {kind.position(layer) for kind, layer in pairs} - {None}
    if len(positions) > 1:
        counts = ", ".join(str(count) for count in sorted(p for p in positions if p is not None))
        raise ValueError(f"layers hold different numbers of tokens: {counts}")
    return positions.pop() if positions else None


class SpanPieces(NamedTuple):
    """A span [start, end) and its pieces, a list to be completed in place.

    `moved_out`: its rows are in the layers alone, and stay there.
    """

    start: int
    end: int
    pieces: list[Piece | None]
    moved_out: bool = False


def collect(
    layout: Layout,
    layers: Sequence[Layer],
    at: int,
    spans: Sequence[SpanPieces],
    *,
    emptying: Collection[Sequence[Piece | None]] | None = None,
) -> None:
    """Complete the pieces of spans in place from layers that have seen `at` tokens.

    Collected pieces own their memory, once it is made (`begin`). A split leaves holes in windows,
    and state exists only where it was taken (DESIGN, "What a layer keeps"), so existing spans are
    completed by layers that pass them. With `emptying` the layers, a list, are given up one by one,
    so that little of them is held twice: then all is made, and so are the pieces of other spans
    collected from these layers before, which are given for it.
    """
    groups = Groups(Counter(layout))
    for index, kind in enumerate(layout):
        for start, end, pieces, moved_out in spans:
            if moved_out and kind.anywhere:
                continue
            if end <= at and kind.missing(pieces[index], end - start):
                piece = kind.cut(layers[index], at, start, end)
                if piece is not None and _more(piece, pieces[index]):
                    pieces[index] = piece
        if emptying is not None:
            assert isinstance(layers, list)
            layers[index] = None
            made = [pieces[index] for pieces in (*emptying, *(span.pieces for span in spans))]
            groups.add(kind, _by_column(made))
    groups.finish()


def cut(
    layout: Layout, layers: Sequence[Layer], at: int, start: int, end: int
) -> list[Piece | None]:
    """The pieces of a span [start, end) of layers at token `at`; nothing is evaluated."""
    pairs = zip(layout, layers, strict=True)
    return [kind.cut(layer, at, start, end) for kind, layer in pairs]


def thinned(layout: Layout, pieces: Sequence[Piece | None]) -> list[Piece | None]:
    """A span's pieces without those that only serve to resume at its end."""
    pairs = zip(layout, pieces, strict=True)
    return [None if piece is None else kind.thinned(piece) for kind, piece in pairs]


def split(
    layout: Layout, pieces: Sequence[Piece | None], length: int, at: int
) -> tuple[list[Piece | None], list[Piece | None]]:
    """The pieces of a span of `length` tokens, cut after `at` of them; not made yet (`begin`)."""
    halves = [
        (None, None) if piece is None else kind.split(piece, length, at)
        for kind, piece in zip(layout, pieces, strict=True)
    ]
    return [half[0] for half in halves], [half[1] for half in halves]


def begin(pieces: Iterable[Piece | None]) -> None:
    """Have the device make these pieces, where they are not made yet; waits for nothing."""
    arrays = [a for piece in pieces if piece is not None for a in piece if a is not None]
    mx.async_eval(arrays)  # type: ignore[no-untyped-call]


def resumable(layout: Layout, parts: Sequence[PathPart], limit: int) -> int:
    """The longest prefix, at most `limit`, at which every layer can resume.

    The parts follow one another along a path, without gaps, from its start.
    """
    # Layers of one kind are cut together, so the first of each kind speaks for them.
    firsts = {kind: index for index, kind in reversed(list(enumerate(layout)))}
    views = {kind: _views(parts, index) for kind, index in firsts.items()}
    while limit > 0:
        reached = min(kind.resumable(views[kind], limit) for kind in firsts)
        if reached == limit:
            break
        limit = reached
    return limit


def join(
    layout: Layout,
    parts: Sequence[PathPart],
    count: int,
    headroom: int,
    moving: Collection[int] = (),
) -> list[Layer]:
    """New layers that hold the first `count` tokens of a path, verified, with room for more.

    Rows of the parts that are `moving`, by index, leave their pieces (a list) for the layers: group
    by group, so that only one group is held twice at a time.
    """
    layers = []
    groups = Groups(Counter(layout))
    for index, kind in enumerate(layout):
        views = _views(parts, index)
        for part in moving:
            if kind.anywhere:
                pieces = parts[part].pieces
                assert isinstance(pieces, list)
                pieces[index] = None
        layers.append(kind.join(views, count, headroom))
        seen = kind.position(layers[-1])
        if seen not in (None, count):
            raise ValueError(f"layer {index} holds {seen} tokens where {count} are claimed")
        groups.add(kind, arrays_of(layers[-1]))
    groups.finish()
    return layers


def nbytes(pieces: Iterable[Piece | None], page: int = 1) -> int:
    """Bytes of all arrays of a span, each in whole pages of `page` bytes."""
    return sum(-(-size // page) * page for size in _sizes(pieces))


def arrays(pieces: Iterable[Piece | None]) -> int:
    """The number of arrays in a span; each is a buffer of the device."""
    return sum(1 for _ in _sizes(pieces))


def _sizes(pieces: Iterable[Piece | None]) -> Iterator[int]:
    return (a.nbytes for piece in pieces if piece is not None for a in piece if a is not None)


def _kind_to_json(kind: LayerKind) -> list[Any]:
    if isinstance(kind, ListOf):
        return [kind.name, [_kind_to_json(part) for part in kind.parts]]
    settings = {f.name: getattr(kind, f.name) for f in fields(kind)}  # type: ignore[arg-type]
    return [kind.name, settings]


def _more(new: Piece | None, old: Piece | None) -> bool:
    return new is not None and (old is None or nbytes([new]) > nbytes([old]))


def _views(parts: Sequence[PathPart], layer: int) -> list[View]:
    return [View(p.start, p.end, p.span_end, p.pieces[layer]) for p in parts]


def _by_column(pieces: Sequence[Piece | None]) -> list[mx.array]:
    """The arrays of one layer's pieces: first all keys, then all values."""
    columns = zip_longest(*(piece for piece in pieces if piece is not None))
    return [a for column in columns for a in column if a is not None]


def _brief(layout: Layout) -> str:
    return ", ".join(f"{count} x {kind[0]}" for count, kind in layout_to_json(layout))
