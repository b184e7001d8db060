"""A model's own class of layers, kept whole at checkpoints if its `state` describes it fully."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx

from .kinds import Layer, State
from .pieces import Piece, View, owned

_ARRAY, _INTEGER = "a", "i"

# Classes that live layers had. A name in a file only ever selects one of these: code that a
# file names is never looked up, let alone imported (law 6).
_seen: dict[str, type[Any]] = {}


class NoRoundTrip(ValueError):
    """A layer that its `state` does not describe fully; the message says why."""


@dataclass(frozen=True)
class OwnState(State):
    """Layers of a class seen alive; `leaves` has a letter for each array or integer of `state`."""

    arity: int
    class_name: str
    leaves: str

    name: ClassVar[str] = "own_state"

    def position(self, layer: Layer) -> int | None:
        """The number of tokens the layer has seen, if it counts them."""
        offset = getattr(layer, "offset", None)
        return offset if isinstance(offset, int) else None

    def cut(self, layer: Layer, at: int, start: int, end: int) -> Piece | None:
        """The whole state, if the layer stands at the span's end."""
        if end != at:
            return None
        return owned(mx.array([leaf]) if isinstance(leaf, int) else leaf for leaf in layer.state)

    def resumable(self, views: Any, limit: int) -> int:
        """The last end of a span that holds state; none before a live layer showed its class."""
        known = self.class_name in _seen
        return super().resumable(views, limit) if known else 0

    def join(self, views: Any, count: int, headroom: int) -> Layer:
        """The state at `count` in a new layer of the class."""
        piece = next(v.piece for v in views if _ends_at(v, count)) or ()
        leaves = zip(self.leaves, piece, strict=True)
        state = [
            int(a.item()) if letter == _INTEGER else a[...] if a is not None else None
            for letter, a in leaves
        ]
        return _made(_seen[self.class_name], state)


def own_state(layer: Layer) -> OwnState:
    """The kind of a layer of an unknown class; NoRoundTrip if its state is not all of it."""
    cls = type(layer)
    if cls.__module__ == "mlx_lm.models.cache":
        raise NoRoundTrip("it is not made for one sequence")
    if getattr(getattr(cls, "state", None), "fset", None) is None:
        raise NoRoundTrip("its state can't be set")
    state = layer.state
    if not isinstance(state, tuple | list) or not all(_is_leaf(leaf) for leaf in state):
        raise NoRoundTrip("its state is no flat sequence of arrays and integers")
    lost = _lost(layer, _made(cls, state))
    if lost:
        raise NoRoundTrip(f"its state does not hold {', '.join(lost)}")
    class_name = f"{cls.__module__}.{cls.__qualname__}"
    _seen[class_name] = cls
    leaves = "".join(_INTEGER if isinstance(leaf, int) else _ARRAY for leaf in state)
    return OwnState(len(leaves), class_name, leaves)


def _is_leaf(leaf: Any) -> bool:
    return leaf is None or isinstance(leaf, mx.array) or type(leaf) is int


def _made(cls: type[Any], state: Any) -> Layer:
    layer = object.__new__(cls)
    layer.state = tuple(state)
    return layer


def _lost(layer: Layer, twin: Layer) -> list[str]:
    """Attributes that a twin made from the state alone lacks, or that differ."""
    if not hasattr(layer, "__dict__"):
        return ["its slots"]
    theirs = vars(twin)
    return [n for n, v in vars(layer).items() if n not in theirs or not _same(v, theirs[n])]


def _same(value: Any, other: Any) -> bool:
    if value is other:
        return True
    if isinstance(value, mx.array) and isinstance(other, mx.array):
        return value.dtype == other.dtype and bool(mx.array_equal(value, other))
    return type(value) is type(other) and bool(value == other)


def _ends_at(view: View, count: int) -> bool:
    return view.end == count == view.span_end
