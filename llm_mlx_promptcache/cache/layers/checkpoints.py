"""Checkpoints: the layers' state at a token whose rows are stored already.

A path that is split, or resumed, inside a stored span leaves state and windows there. They are
stored beside the span, as a span without tokens, so that no file has to be rewritten.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

from .kinds import LayerKind, ListOf
from .layout import Layout, PathPart
from .pieces import Piece, View


def checkpoint_at(layout: Layout, parts: Sequence[PathPart], at: int) -> list[Piece | None] | None:
    """Everything except rows needed to resume at `at`; None if these parts don't hold it."""
    found: list[Piece | None] = []
    for index, kind in enumerate(layout):
        if kind.anywhere:
            found.append(None)
            continue
        views = [View(p.start, p.end, p.span_end, p.pieces[index]) for p in parts]
        if kind.resumable(views, at) != at:
            return None
        found.append(_ends_only(kind, kind.cut(kind.join(views, at, 0), at, 0, at)))
    return found


def resumes(layout: Layout, parts: Sequence[PathPart], at: int) -> bool:
    """True if all layers that can't be cut could resume at `at`, given the rows of the others.

    Rows may be moved out to a lease while their span is written.
    """
    for index, kind in enumerate(layout):
        if not kind.anywhere:
            views = [View(p.start, p.end, p.span_end, p.pieces[index]) for p in parts]
            if kind.resumable(views, at) != at:
                return False
    return True


def resumed_at(
    layout: Layout,
    parts: Sequence[PathPart],
    starts: Sequence[int],
    at: int,
    extra: Sequence[Piece | None],
) -> list[PathPart]:
    """Parts of a path up to `at`, with the content of a checkpoint there.

    `starts` are the starts of the parts' spans, which may be before the part.
    """
    pairs = [(part, start) for part, start in zip(parts, starts, strict=True) if part.start < at]
    cut = [(part._replace(end=min(part.end, at)), start) for part, start in pairs]
    stitch = _Stitch(layout, cut, extra)
    return [
        PathPart(part.start, part.end, part.end, _Column(stitch, number))
        for number, (part, _) in enumerate(cut)
    ]


class _Shape(NamedTuple):
    """An array's shape: all that planning needs of it."""

    shape: tuple[int, ...]


def outline_from(
    layout: Layout, parts: Sequence[PathPart], at: int, extra: Sequence[Piece | None]
) -> list[PathPart]:
    """Parts to plan with beyond `at`, where a path has this checkpoint; none if it lacks rows.

    A window that reaches back over that token takes the checkpoint's rows there. If a span goes on
    over that token, nothing beyond it is used: a file's pieces are read only once.
    """
    kinds = {kind: index for index, kind in enumerate(layout)}  # those of one kind are cut together
    before = [part for part in parts if part.start < at]
    if any(_lacks_rows(kind, part.pieces[i]) for kind, i in kinds.items() for part in before):
        return []
    first = parts[0].pieces
    pairs = enumerate(zip(layout, extra, strict=True))
    made = [_merged(kind, _all_rows(kind, first[i], at), over) for i, (kind, over) in pairs]
    whole = PathPart(0, at, at, made)
    if any(part.start < at < part.end for part in parts):
        return [whole]
    return [whole, *(part for part in parts if part.start >= at)]


def _lacks_rows(kind: LayerKind, piece: Piece | None) -> bool:
    """True if a piece is without rows that its kind would have."""
    if isinstance(kind, ListOf):
        pairs = zip(kind.parts, kind.parted(piece), strict=True)
        return any(_lacks_rows(part, sub) for part, sub in pairs)
    return kind.anywhere and piece is None


def _all_rows(kind: LayerKind, piece: Piece | None, count: int) -> Piece | None:
    """The shape of a layer's first `count` rows, after one of its pieces; of other layers none."""
    if piece is None:
        return None
    if isinstance(kind, ListOf):
        subs = zip(kind.parts, kind.parted(piece), strict=True)
        return kind.flat([_all_rows(part, sub, count) for part, sub in subs])
    if not kind.anywhere:
        return None
    shapes = [None if a is None else _Shape((*a.shape[:-2], count, a.shape[-1])) for a in piece]
    return cast("Piece", tuple(shapes))


class _Stitch:
    """The pieces of all parts, made layer by layer on demand."""

    def __init__(
        self, layout: Layout, parts: list[tuple[PathPart, int]], extra: Sequence[Piece | None]
    ) -> None:
        self._layout = layout
        self._parts = parts
        self._extra = extra
        self._made: tuple[int, list[Piece | None]] = (-1, [])

    def __len__(self) -> int:
        return len(self._layout)

    def piece(self, layer: int, number: int) -> Piece | None:
        """The piece of one part."""
        if self._made[0] != layer:
            self._made = layer, self._layer(layer)
        return self._made[1][number]

    def _layer(self, layer: int) -> list[Piece | None]:
        kind = self._layout[layer]
        made = [_left(kind, part, start, part.pieces[layer]) for part, start in self._parts]
        rest, end = self._extra[layer], self._parts[-1][0].end
        # A window may reach back over several parts: each gets its own rows.
        for number in range(len(made) - 1, -1, -1):
            start = self._parts[number][0].start
            if rest is None:
                break
            before, here = kind.split(rest, end, start) if start else (None, rest)
            made[number] = _merged(kind, made[number], here)
            rest, end = before, start
        return made


class _Column(Sequence[Piece | None]):
    """One part's pieces."""

    def __init__(self, stitch: _Stitch, number: int) -> None:
        self._stitch = stitch
        self._number = number

    def __len__(self) -> int:
        return len(self._stitch)

    def __getitem__(self, layer: int) -> Piece | None:  # type: ignore[override]
        return self._stitch.piece(layer, self._number)

    def __iter__(self) -> Iterator[Piece | None]:
        return (self[layer] for layer in range(len(self)))


def _left(kind: LayerKind, part: PathPart, start: int, piece: Piece | None) -> Piece | None:
    """A span's piece up to the part's end."""
    if piece is None or part.end == part.span_end:
        return piece
    return kind.split(piece, part.span_end - start, part.end - start)[0]


def _ends_only(kind: LayerKind, piece: Piece | None) -> Piece | None:
    """A piece without rows, which are stored already."""
    if piece is None or kind.anywhere:
        return None
    if not isinstance(kind, ListOf):
        return piece
    subs = zip(kind.parts, kind.parted(piece), strict=True)
    return kind.flat([_ends_only(part, sub) for part, sub in subs])


def _merged(kind: LayerKind, base: Piece | None, over: Piece | None) -> Piece | None:
    """The content of both for a layer; if both have it, `over`."""
    if over is None or base is None or not isinstance(kind, ListOf):
        return base if over is None else over
    triples = zip(kind.parts, kind.parted(base), kind.parted(over), strict=True)
    return kind.flat([_merged(part, b, o) for part, b, o in triples])
