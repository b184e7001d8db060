"""The memory that a conversation takes, from a model's shapes before anything is computed."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..cache.layers.kinds import KVRows, LayerKind, ListOf, Window
from ..cache.layers.layout import NotCached, layout_of
from .kv_settings import KVSettings
from .layers import arrays_of, make_layers

# Layers of full attention grow by so many rows at a time.
_STEP: Final = 256
# A scale and a bias of 16 bits for each group of quantised values.
_GROUP_BITS: Final = 32
# A chunk of a prompt stands in a window's buffer beside the window itself.
_CHUNK: Final = 2048


class Needs(NamedTuple):
    """Bytes of the layers of one conversation: some per token, some per window token, some fixed.

    `windows` are (rows at most, bytes a row); `bits` are those of one value of the rows.
    """

    row: float = 0.0
    windows: tuple[tuple[int, float], ...] = ()
    fixed: int = 0
    bits: int = 16

    def at(self, tokens: int, kv: KVSettings | None = None) -> int:
        """Bytes that layers hold of so many tokens, with quantised keys and values if given."""
        rows = -(-tokens // _STEP) * _STEP
        grown = rows * self.row
        if kv is not None and tokens > kv.start:
            grown *= (kv.bits + _GROUP_BITS / (kv.group_size or 64)) / self.bits
        return self.fixed + int(grown + sum(min(rows, most) * row for most, row in self.windows))

    def fitting(self, nbytes: float, kv: KVSettings | None = None) -> int:
        """The number of tokens that fit into so many bytes, at most the range of a row's index."""
        low, high = 0, 1 << 31
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.at(middle, kv) <= nbytes else (low, middle - 1)
        return low


def needs_of(model: nn.Module) -> Needs | None:
    """The needs of this model's layers; None if one has a class of unknown growth."""
    layers = make_layers(model)
    try:
        layout = layout_of(layers)
    except NotCached:
        return None
    model(mx.array([[0]]), cache=layers)  # lazy: only shapes are computed
    found = Needs()
    for kind, layer in zip(layout, layers, strict=True):
        found = _with(found, kind, layer)
    return found


def _with(found: Needs, kind: LayerKind, layer: Any) -> Needs:
    """The same with one more layer, which has seen one token."""
    if isinstance(kind, ListOf):
        for part, sub in zip(kind.parts, layer.caches, strict=True):
            found = _with(found, part, sub)
        return found
    arrays = arrays_of(layer)
    if not isinstance(kind, KVRows | Window) or layer.keys is None:
        return found._replace(fixed=found.fixed + sum(a.nbytes for a in arrays))
    row = sum(a.nbytes / a.shape[-2] for a in arrays)
    if isinstance(kind, Window):
        return found._replace(windows=(*found.windows, (kind.size + _CHUNK, row)))
    return found._replace(row=found.row + row, bits=8 * arrays[0].itemsize)
