"""Layers of several requests as one batch's: joined, taken apart, and which kinds can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import Enum
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import (
    ArraysCache,
    BatchKVCache,
    CacheList,
    KVCache,
    RotatingKVCache,
)

from ..cache.layers.pieces import Groups
from ..models.layers import arrays_of

# Their batched forms give each request back what it put in; others' are not tried.
_BATCHED = (KVCache, RotatingKVCache, ArraysCache)


class BatchForm(Enum):
    """The way a model's answers take their steps together, if at all."""

    ALONE = "alone"
    PLAIN = "plain"  # over mlx-lm's batched layers
    GROUPED = "grouped"  # over those with a mask for scores [request, group, head, query, key]


class GroupedKVCache(BatchKVCache):  # type: ignore[misc]
    """Batched rows for models that split their scores by groups of heads (gemma2).

    mlx-lm's mask [request, 1, query, key] would fall on their groups.
    """

    def make_mask(self, N: int, return_array: bool = False, **kwargs: Any) -> mx.array:  # noqa: FBT001, FBT002 - mlx-lm's signature
        """The mask of the next N tokens, with an axis for the heads of a group."""
        mask: mx.array = super().make_mask(N, return_array=return_array, **kwargs)
        return mx.expand_dims(mask, 2)


def can_batch(layers: Sequence[Any]) -> bool:
    """True if these layers have a batched form; whether the model agrees is for its trial."""
    for layer in layers:
        if type(layer) is CacheList:
            if not can_batch(layer.caches):
                return False
        elif type(layer) not in _BATCHED or getattr(layer, "keep", None):
            return False
    return True


def can_group(layers: Sequence[Any]) -> bool:
    """True if the form GROUPED works with these layers."""
    return all(type(layer) is KVCache for layer in layers)


def merge(one: list[Any], other: list[Any], form: BatchForm = BatchForm.PLAIN) -> list[Any]:
    """Two requests' layers as one batch's; both lists are emptied, layer by layer."""
    merged = []
    groups = _groups(one)
    while one:
        pair = [one.pop(0), other.pop(0)]
        kind = GroupedKVCache if form is BatchForm.GROUPED else type(pair[0])
        merged.append(kind.merge(pair))
        groups.add(type(pair[0]), arrays_of(merged[-1]))
    groups.finish()
    return merged


def extend(batch: Sequence[Any], layers: list[Any]) -> None:
    """Take one request's layers into a batch; their list is emptied, layer by layer."""
    groups = _groups(layers)
    for held in batch:
        layer = layers.pop(0)
        held.extend(type(layer).merge([layer]))
        groups.add(type(layer), arrays_of(held))
    groups.finish()


def _groups(layers: Sequence[Any]) -> Groups:
    """The groups in which joined layers are evaluated, so that little is held twice."""
    return Groups(Counter(type(layer) for layer in layers))


def extract(batch: Sequence[Any], row: int) -> list[Any]:
    """A copy of one request's layers."""
    return [layer.extract(row) for layer in batch]
