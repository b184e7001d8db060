"""The model's layers and the model at work: it is called here and nowhere else."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import wired_limit

from ..cache import device


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
    """Logits [requests, vocab_size] behind `tokens` [requests, count]; nothing is evaluated."""
    logits: mx.array = model(tokens, cache=layers)[:, -1, :]
    return logits


def forward_each(model: nn.Module, layers: Sequence[Any], tokens: Sequence[int]) -> mx.array:
    """Logits [tokens, vocab_size] behind each of one row's tokens; nothing is evaluated."""
    logits: mx.array = model(mx.array([list(tokens)]), cache=layers)[0]
    return logits
