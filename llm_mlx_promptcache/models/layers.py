"""The layers in which a model keeps the tokens it has read."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from ..cache.layers.pieces import arrays_of

__all__ = ["arrays_of", "make_layers", "vocab_size_of", "weights_in"]


def make_layers(model: nn.Module) -> list[Any]:
    """Fresh, empty layers of the classes that the model wants."""
    return list(make_prompt_cache(model))


def vocab_size_of(model: nn.Module) -> int:
    """The number of columns of the model's logits, from shapes alone: nothing is computed."""
    logits: mx.array = model(mx.array([[0]]))
    return int(logits.shape[-1])


def weights_in(model: nn.Module) -> int:
    """Bytes of a model's weights as they are in memory."""
    return sum(weights.nbytes for _, weights in tree_flatten(model.parameters()))


def coarsest_dtype(model: nn.Module) -> mx.Dtype:
    """The dtype with the fewest bits of a model's floating-point weights, scales among them."""
    kinds = {weights.dtype for _, weights in tree_flatten(model.parameters())}
    floating = [kind for kind in kinds if mx.issubdtype(kind, mx.floating)]
    return max(floating, key=lambda kind: mx.finfo(kind).eps, default=mx.float32)
