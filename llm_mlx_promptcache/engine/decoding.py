"""Prefill and decode: the model is run here and nowhere else, on the engine's thread."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import wired_limit
from mlx_lm.models.cache import make_prompt_cache

from .sampling import Chooser


def make_layers(model: nn.Module) -> list[Any]:
    """Fresh, empty layers of the classes that the model wants."""
    return list(make_prompt_cache(model))


def wired(model: nn.Module) -> AbstractContextManager[None]:
    """Keep the model in wired memory meanwhile (Apple GPUs only; elsewhere nothing happens)."""
    limit: AbstractContextManager[None] = wired_limit(model)
    return limit


def prefill_step() -> int:
    """Tokens a chunk: on the CPU attention over a chunk is materialised, so it is smaller there."""
    return 256 if mx.default_device().type == mx.DeviceType.cpu else 2048


def prefill(
    model: nn.Module,
    layers: Sequence[Any],
    ids: Sequence[int],
    done: int,
    places: Collection[int] = (),
) -> Iterator[int]:
    """Run `ids[done:]` but for the last token, chunk by chunk, stopping at each of `places` too.

    Yields how many tokens are done, first and after each chunk.
    """
    yield done
    last = len(ids) - 1
    stops = [*sorted(place for place in places if done < place < last), last]
    for stop in stops:
        while done < stop:
            end = min(done + prefill_step(), stop)
            model(mx.array([list(ids[done:end])]), cache=layers)
            mx.eval([layer.state for layer in layers])
            mx.clear_cache()
            done = end
            yield done


def decode(
    model: nn.Module, layers: Sequence[Any], last: int, chooser: Chooser, limit: int
) -> Iterator[int]:
    """Yield up to `limit` tokens that follow `last`.

    The next step is on its way before a token is handed out, so when the n-th is yielded the
    layers hold `last` and all n tokens.
    """
    token = _step(model, layers, mx.array([last]), chooser)
    mx.async_eval(token)  # type: ignore[no-untyped-call]
    for count in range(limit):
        following = _step(model, layers, token, chooser)
        mx.async_eval(following)  # type: ignore[no-untyped-call]
        yield cast("int", token.item())
        token = following
        if count % 256 == 255:
            mx.clear_cache()


def _step(model: nn.Module, layers: Sequence[Any], token: mx.array, chooser: Chooser) -> mx.array:
    logits = model(token[None], cache=layers)
    return chooser.choose(logits[:, -1, :])
