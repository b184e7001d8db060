"""Layers that go back by some tokens, after a draft that was only partly right.

Rows are cut off. States can't be: they are put back as they were before the pass, by reference, and
the caller runs its right tokens again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    ConcatenateKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
)

from .kinds import Layer

_ROWS = (KVCache, QuantizedKVCache, ChunkedKVCache)
_CUT = (*_ROWS, ConcatenateKVCache, RotatingKVCache)

# A layer before a pass; none for rows, which are cut.
LayerMark = Any


def can_rewind(layers: Sequence[Layer]) -> bool:
    """True if all of them are of classes that go back exactly."""
    return not kinds_that_stay(layers)


def kinds_that_stay(layers: Sequence[Layer]) -> list[str]:
    """The classes of layers that can't go back, by name, each once."""
    kinds = (type(one) for one in _flat(layers))
    return sorted({kind.__name__ for kind in kinds if kind not in (*_CUT, ArraysCache)})


def marks_of(layers: Sequence[Layer], *, least: int = 1) -> list[LayerMark] | None:
    """The marks for `rewind` of the layers before a pass, of which `least` tokens stay (0 or 1)."""
    flat = _flat(layers)
    if least and all(type(one) in _CUT for one in flat):
        return None
    return [_mark(one) for one in flat]


def rewind(layers: Sequence[Layer], marks: list[LayerMark] | None, fed: int, kept: int) -> int:
    """Go back behind a pass of `fed` tokens so that `kept` stay, no fewer than were marked for.

    Returns the number of these that must be run again: none, or all of them if there are marks.
    """
    if fed == kept:
        return 0
    if marks is None:
        for layer in _flat(layers):
            _cut(layer, fed - kept)
        return 0
    for layer, mark in zip(_flat(layers), marks, strict=True):
        _put_back(layer, mark, fed)
    return kept


def _flat(layers: Sequence[Layer]) -> list[Layer]:
    found: list[Layer] = []
    for layer in layers:
        found += _flat(layer.caches) if type(layer) is CacheList else [layer]
    return found


def _mark(layer: Layer) -> LayerMark:
    """The part of a layer that a pass changes; none of rows, since it writes behind their end."""
    if type(layer) is ArraysCache:
        return list(layer.cache)
    if type(layer) in (RotatingKVCache, ConcatenateKVCache):
        return _own(vars(layer))
    return None


def _own(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with arrays of its own: a pass of one token writes into a window's in place."""
    return {
        name: mx.array(value) if isinstance(value, mx.array) else value
        for name, value in values.items()
    }


def _put_back(layer: Layer, mark: LayerMark, fed: int) -> None:
    if type(layer) is ArraysCache:
        layer.cache = list(mark)  # it may be asked for once more
    elif mark is not None:
        for name, value in _own(mark).items():  # it may be asked for once more
            setattr(layer, name, value)
    else:
        layer.offset -= fed


def _cut(layer: Layer, count: int) -> None:
    """Take the last rows off."""
    layer.offset -= count
    if type(layer) in _ROWS:
        return  # rows behind the offset are overwritten
    # mlx-lm's own `trim` moves a window's offset and leaves the rows, and so it does here.
    layer.keys = layer.keys[..., :-count, :]
    layer.values = layer.values[..., :-count, :]
    if type(layer) is RotatingKVCache:
        # A pass of several tokens left them in the order of time, a whole window at least.
        layer._idx = layer.keys.shape[-2]
