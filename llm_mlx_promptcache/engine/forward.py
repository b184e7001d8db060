"""The model's layers and the model at work: nothing else calls it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..cache import device


def prefill(model: nn.Module, layers: Sequence[Any], ids: Sequence[int]) -> None:
    """Run `ids` to fill the layers."""
    with device.work():
        model(mx.array([list(ids)]), cache=layers)
        mx.eval([layer.state for layer in layers])
    mx.clear_cache()


def forward(model: nn.Module, layers: Sequence[Any], tokens: mx.array) -> mx.array:
    """Logits [requests, vocab_size] behind `tokens` [requests, count]; nothing is evaluated."""
    logits: mx.array = model(tokens, cache=layers)[:, -1, :]
    return logits


def forward_each(model: nn.Module, layers: Sequence[Any], tokens: Sequence[int]) -> mx.array:
    """Logits [tokens, vocab_size] behind each of one row's tokens; nothing is evaluated."""
    logits: mx.array = model(mx.array([list(tokens)]), cache=layers)[0]
    return logits
