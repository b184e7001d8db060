"""Layers of rows whose bits are like those that models hold."""

import mlx.core as mx
from mlx_lm.models.cache import KVCache


def normal_layers(length, width, dtype):
    """Two layers of two heads, with so many rows: the same ones each time."""
    mx.random.seed(3)
    made = []
    for _ in range(2):
        layer = KVCache()
        shape = (1, 2, length, width)
        layer.update_and_fetch(*(mx.random.normal(shape).astype(dtype) for _ in range(2)))
        made.append(layer)
    return made
