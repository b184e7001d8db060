"""Keys and values in fewer bits, for models that run over them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from ..cache.layers.pieces import Groups
from .errors import one_line
from .kv_settings import KVSettings
from .layers import arrays_of, make_layers

# MLX allows 128 too, which saves little and loses more.
_GROUP_SIZES = (64, 32)


def quantise(layers: list[Any], kv: KVSettings) -> None:
    """Quantise the layers of full attention in place; windows and states are small and stay.

    ValueError if no layer can be quantised.
    """
    groups = Groups({KVCache: len(layers)})
    for index, layer in enumerate(layers):
        if type(layer) is KVCache:
            layers[index] = layer.to_quantized(group_size=kv.group_size, bits=kv.bits)
            groups.add(KVCache, arrays_of(layers[index]))
    groups.finish()
    if type(layers[0]) is not QuantizedKVCache:
        layers[0] = copy.copy(layers[0])  # the lease of what was not quantised ends
    if not is_quantised(layers):
        kinds = ", ".join(sorted({type(layer).__name__ for layer in layers}))
        raise ValueError(
            f"kv.bits is {kv.bits}, and none of this model's layers ({kinds}) can be quantised;"
            " leave it out"
        )


def check_quantised(model: nn.Module, kv: KVSettings) -> None:
    """Check that the model runs over keys and values quantised like this; ValueError."""
    layers = make_layers(model)
    quantise(layers, kv)
    try:
        model(mx.array([[0]]), cache=layers)  # shapes alone tell; nothing is computed
    except Exception as error:
        raise ValueError(
            f"kv_bits {kv.bits} with groups of {kv.group_size} does not go with this model"
            f" ({one_line(error, 120)}); leave kv_group_size out, or kv_bits"
        ) from error


def fitting(model: nn.Module, kv: KVSettings) -> KVSettings:
    """The settings with a group size that the model can run with; ValueError if there is none.

    Heads whose size is no multiple of 64 (Phi-3's 96) go in groups of 32.
    """
    if kv.group_size is not None:
        check_quantised(model, kv)
        return kv
    for size in _GROUP_SIZES:
        try:
            check_quantised(model, kv._replace(group_size=size))
        except ValueError as error:
            reason = error
        else:
            return kv._replace(group_size=size)
    raise ValueError(
        f"kv_bits is {kv.bits}, and this model's keys and values go in no groups of"
        f" {' or '.join(map(str, _GROUP_SIZES))}; leave kv_bits out"
    ) from reason


def is_quantised(layers: Sequence[Any]) -> bool:
    """True if keys and values are kept in fewer bits."""
    return any(type(layer) is QuantizedKVCache for layer in layers)
