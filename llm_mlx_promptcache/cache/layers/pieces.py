"""Pieces: a span's arrays of one layer, cut out, viewed and put together.

A kept array is a copy of its own size, so that no span keeps a larger buffer alive.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from .device_memory import POOL_OF_COPIES, trim_pool

MxArray = mx.array
Dtype = mx.Dtype
Piece = tuple[mx.array | None, ...]

_GROUPS = 16
_LEAST = 1 << 20  # bytes; holding fewer than this twice is not worth a wait


class View(NamedTuple):
    """One layer's piece as a path uses it.

    The path follows the span over [start, end); the span itself, and so its piece, ends at
    `span_end`. The piece is None if the span does not hold this layer.
    """

    start: int
    end: int
    span_end: int
    piece: Piece | None


def rows_of(piece: Piece, first: int, last: int) -> Piece | None:
    """Rows [first, last) of each array, in memory of their own; None if there are none."""
    if last <= first:
        return None
    return tuple(a if a is None else copied(a[..., first:last, :]) for a in piece)


def owned(arrays: Iterable[mx.array | None]) -> Piece | None:
    """Copies that keep no larger array alive (mamba2's state is a view of a whole chunk)."""
    piece = tuple(a if a is None else copied(a) for a in arrays)
    return piece if any(a is not None for a in piece) else None


def copied(values: mx.array) -> mx.array:
    """A copy in memory of its own size.

    `mx.contiguous` copies nothing if the rows lie together (one head, one token): it keeps up to 16
    KiB of the larger array alive, which for short spans is more than they report.
    """
    flat = values.reshape(-1) if values.ndim == 0 else values
    axis = max(flat.ndim - 2, 0)
    nothing = mx.zeros((*flat.shape[:axis], 0, *flat.shape[axis + 1 :]), flat.dtype)
    return mx.concatenate([flat, nothing], axis=axis).reshape(values.shape)


def rows_in(piece: Piece) -> int:
    """The number of rows in a piece."""
    return next(int(a.shape[-2]) for a in piece if a is not None)


def runs(views: Sequence[View]) -> list[tuple[int, int]]:
    """Runs of tokens [first, last) whose rows are held, neighbours joined."""
    found: list[tuple[int, int]] = []
    for view in views:
        if view.piece is None:
            continue
        first = max(view.start, view.span_end - rows_in(view.piece))
        if first >= view.end:
            continue
        if found and found[-1][1] == first:
            found[-1] = (found[-1][0], view.end)
        else:
            found.append((first, view.end))
    return found


def used(view: View, first: int, last: int) -> list[mx.array]:
    """The rows [first, last) of a path out of one view's piece, which ends at its span's end."""
    arrays = [a for a in view.piece or () if a is not None]
    oldest = view.span_end - arrays[0].shape[-2]
    if first == oldest and last == view.span_end:
        return arrays
    return [a[..., first - oldest : last - oldest, :] for a in arrays]


def joined(parts: list[list[mx.array]], headroom: int) -> list[mx.array]:
    """Arrays of all parts' rows, and headroom; the parts are emptied on the way."""
    made = []
    for _ in range(len(parts[0])):
        rows = [arrays.pop(0) for arrays in parts]
        if headroom > 0:
            shape = (*rows[0].shape[:-2], headroom, rows[0].shape[-1])
            rows.append(mx.zeros(shape, rows[0].dtype))
        # Never the stored array object itself: the model writes into its layers in place (law 9).
        # Alone it is copied only where it keeps a larger buffer alive, as a view of a file's bytes.
        whole = mx.concatenate(rows, axis=-2) if len(rows) > 1 else mx.contiguous(rows[0])
        made.append(whole)
    return made


class Groups:
    """Arrays of a model's layers, made in groups of a sixteenth of all their bytes.

    A wait for each array would be dozens before a first token, and one for all would hold
    everything twice: the sources of arrays are freed with their group. `same` is the number of the
    model's layers that are like this one.
    """

    def __init__(self, same: Mapping[Any, int]) -> None:
        self._same = same
        self._sizes: dict[Any, int] = {}  # bytes of the first layer of each kind
        self._waiting: list[mx.array] = []
        self._bytes = 0

    def add(self, kind: Any, arrays: Sequence[mx.array]) -> None:
        """Add the arrays of the next layer, of this kind."""
        self._sizes.setdefault(kind, sum(a.nbytes for a in arrays))
        whole = sum(self._same[each] * size for each, size in self._sizes.items())
        for values in arrays:
            self._waiting.append(values)
            self._bytes += values.nbytes
            if self._bytes >= max(whole / _GROUPS, _LEAST):
                self.finish()

    def finish(self) -> None:
        """Wait for the arrays that are left."""
        if self._waiting:
            mx.eval(self._waiting)
            trim_pool(POOL_OF_COPIES)  # freed sources, unfit for other arrays
        self._waiting, self._bytes = [], 0


def arrays_of(layer: Any) -> list[mx.array]:
    """All arrays of one layer's state, if it has one."""
    arrays, waiting = [], [getattr(layer, "state", None)]
    while waiting:
        one = waiting.pop()
        if isinstance(one, mx.array):
            arrays.append(one)
        elif isinstance(one, (list, tuple)):
            waiting.extend(reversed(one))
    return arrays
