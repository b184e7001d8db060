"""The layers in which a model keeps what it has read."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache


def make_layers(model: nn.Module) -> list[Any]:
    """Fresh, empty layers of the classes that the model wants."""
    return list(make_prompt_cache(model))


def vocab_size_of(model: nn.Module) -> int:
    """How many columns the model's logits have; asked of its shapes, nothing is computed."""
    logits: mx.array = model(mx.array([[0]]))
    return int(logits.shape[-1])


def arrays_of(layer: Any) -> list[mx.array]:
    """All arrays of one layer's state."""
    arrays, waiting = [], [layer.state]
    while waiting:
        one = waiting.pop()
        if isinstance(one, mx.array):
            arrays.append(one)
        elif isinstance(one, (list, tuple)):
            waiting.extend(one)
    return arrays
