"""The arrays that a model's layers hold of a prompt, from its shapes: nothing is run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import mlx.core as mx
import mlx.nn as nn

from ..cache.layers.kinds import KVRows, LayerKind, ListOf, State, Window
from ..cache.layers.layout import Layout, cut, layout_of, layout_to_json
from .kv_settings import KVSettings
from .layers import make_layers
from .quantisation import quantise

_MOST_BRIEF: Final = 200  # characters


class OtherLayers(ValueError):
    """Layers that differ from a model's own; the message names the difference."""


def check_held(
    model: nn.Module, kv: KVSettings | None, layout: Layout, pieces: Sequence[Any]
) -> None:
    """OtherLayers unless pieces of a path have the types and shapes that this model's would have.

    NotCached where the model's layers can't be kept at all.
    """
    layers = make_layers(model)
    if kv is not None:
        quantise(layers, kv)
    ours = layout_of(layers)
    if layout != ours:
        raise OtherLayers(f"layers are {_brief(layout)} there and {_brief(ours)} here")
    model(mx.array([[0]]), cache=layers)  # shapes alone tell; nothing is computed
    held = cut(ours, layers, 1, 0, 1)
    for index, (kind, piece, wanted) in enumerate(zip(ours, pieces, held, strict=True)):
        for there, here in _pairs(kind, piece, wanted):
            if there != here:
                raise OtherLayers(f"layer {index} holds {there} there and {here} here")


def _pairs(kind: LayerKind, piece: Any, wanted: Any) -> Iterator[tuple[str, str]]:
    """Each array of a layer, as it is and as it should be; a plugin's pieces have shapes only."""
    if isinstance(kind, ListOf):
        parts = zip(kind.parts, kind.parted(piece), kind.parted(wanted), strict=True)
        for part, there, here in parts:
            yield from _pairs(part, there, here)
        return
    if piece is None or wanted is None:
        yield str(piece is None), str(wanted is None)
        return
    for there, here in zip(piece, wanted, strict=True):
        yield _shape(kind, there), _shape(kind, here)


def _shape(kind: LayerKind, array: Any) -> str:
    if array is None:
        return "nothing"
    sizes = [str(size) for size in array.shape]
    if isinstance(kind, KVRows | Window):
        sizes[-2] = "tokens"
    elif not isinstance(kind, State):
        sizes = [f"{len(sizes)} axes"]
    return f"{str(array.dtype).rpartition('.')[2]} [{', '.join(sizes)}]"


def _brief(layout: Layout) -> str:
    runs = [f"{count} x {' '.join(map(str, kind))}" for count, kind in layout_to_json(layout)]
    return ", ".join(runs)[:_MOST_BRIEF]
