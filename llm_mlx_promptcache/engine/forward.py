"""The model's layers and the model at work: it is called here and nowhere else."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from enum import Enum
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import wired_limit
from mlx_lm.models.cache import (
    ArraysCache,
    BatchKVCache,
    CacheList,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
    make_prompt_cache,
)

from ..cache import device
from .errors import one_line
from .request import KVSettings

# Their batched forms give each request back what it put in; others' are not tried.
# MLX knows 128 too, which saves little and loses more.
_GROUP_SIZES = (64, 32)
_BATCHED = (KVCache, RotatingKVCache, ArraysCache)


class BatchForm(Enum):
    """How a model's answers take their steps together, if at all."""

    ALONE = "alone"
    PLAIN = "plain"  # over mlx-lm's batched layers
    GROUPED = "grouped"  # over those with a mask for scores [request, group, head, query, key]


class GroupedKVCache(BatchKVCache):  # type: ignore[misc]
    """Batched rows for models that split their scores by groups of heads (gemma2).

    mlx-lm's mask [request, 1, query, key] would fall on their groups.
    """

    def make_mask(self, N: int, return_array: bool = False, **kwargs: Any) -> mx.array:
        """The mask of the next N tokens, with an axis for the heads of a group."""
        mask: mx.array = super().make_mask(N, return_array, **kwargs)
        return mx.expand_dims(mask, 2)


def make_layers(model: nn.Module) -> list[Any]:
    """Fresh, empty layers of the classes that the model wants."""
    return list(make_prompt_cache(model))


class _Wired:
    """The limit is the process's: the first model at work sets it, the last gives it back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._limit = ExitStack()
        self._models = 0

    @contextmanager
    def held(self, model: nn.Module) -> Iterator[None]:
        with self._lock:
            self._models += 1
            if self._models == 1:
                self._limit.enter_context(wired_limit(model))
        try:
            yield
            device.settle()
        finally:
            with self._lock:
                self._models -= 1
                if not self._models:
                    self._limit.close()


_wired = _Wired()


def wired(model: nn.Module) -> AbstractContextManager[None]:
    """Keep the model in wired memory meanwhile (Apple GPUs only; elsewhere nothing happens)."""
    return _wired.held(model)


def prefill(model: nn.Module, layers: Sequence[Any], ids: Sequence[int]) -> None:
    """Run `ids` for what they leave in the layers."""
    with device.work():
        model(mx.array([list(ids)]), cache=layers)
        mx.eval([layer.state for layer in layers])
    mx.clear_cache()


def forward(model: nn.Module, layers: Sequence[Any], tokens: mx.array) -> mx.array:
    """Logits [requests, words] behind `tokens` [requests, count]; nothing is evaluated."""
    logits: mx.array = model(tokens, cache=layers)[:, -1, :]
    return logits


def words_of(model: nn.Module) -> int:
    """How many columns the model's logits have; asked of its shapes, nothing is computed."""
    logits: mx.array = model(mx.array([[0]]))
    return int(logits.shape[-1])


def quantise(layers: list[Any], kv: KVSettings) -> None:
    """Quantise the layers of full attention in place; windows and states are small and stay.

    ValueError where no layer can be quantised.
    """
    for index, layer in enumerate(layers):
        if type(layer) is KVCache:
            layers[index] = layer.to_quantized(group_size=kv.group_size, bits=kv.bits)
            mx.eval(_arrays(layers[index]))
    if type(layers[0]) is not QuantizedKVCache:
        layers[0] = copy.copy(layers[0])  # the lease of what was not quantised ends
    if not is_quantised(layers):
        kinds = ", ".join(sorted({type(layer).__name__ for layer in layers}))
        raise ValueError(
            f"kv.bits is {kv.bits}, and none of this model's layers ({kinds}) can be quantised;"
            " leave it out"
        )


def check_quantised(model: nn.Module, kv: KVSettings) -> None:
    """ValueError where the model can't run over keys and values quantised like this."""
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
    """The settings with a group size that the model can run with; ValueError where none can.

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
    """Whether keys and values are kept in fewer bits."""
    return any(type(layer) is QuantizedKVCache for layer in layers)


def can_batch(layers: Sequence[Any]) -> bool:
    """Whether layers of these kinds have a batched form; a model must show that it goes with it."""
    for layer in layers:
        if type(layer) is CacheList:
            if not can_batch(layer.caches):
                return False
        elif type(layer) not in _BATCHED or getattr(layer, "keep", None):
            return False
    return True


def can_group(layers: Sequence[Any]) -> bool:
    """Whether the form GROUPED goes with these layers."""
    return all(type(layer) is KVCache for layer in layers)


def merge(one: list[Any], other: list[Any], form: BatchForm = BatchForm.PLAIN) -> list[Any]:
    """Two requests' layers as one batch's; both lists are emptied, layer by layer."""
    merged = []
    while one:
        pair = [one.pop(0), other.pop(0)]
        kind = GroupedKVCache if form is BatchForm.GROUPED else type(pair[0])
        merged.append(kind.merge(pair))
        mx.eval(_arrays(merged[-1]))
    return merged


def extend(batch: Sequence[Any], layers: list[Any]) -> None:
    """Take one request's layers into a batch; their list is emptied, layer by layer."""
    for held in batch:
        layer = layers.pop(0)
        held.extend(type(layer).merge([layer]))
        mx.eval(_arrays(held))


def extract(batch: Sequence[Any], row: int) -> list[Any]:
    """A copy of one request's layers."""
    return [layer.extract(row) for layer in batch]


def _arrays(layer: Any) -> list[mx.array]:
    found, waiting = [], [layer.state]
    while waiting:
        one = waiting.pop()
        if isinstance(one, mx.array):
            found.append(one)
        elif isinstance(one, (list, tuple)):
            waiting.extend(one)
    return found
