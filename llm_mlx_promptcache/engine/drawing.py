"""Drawing: a token from logits and a random key, as one compiled function for each set of filters.

Compiled, neighbours are fused: a draw takes fewer launches than mlx-lm's own sampler. The filters
and their order are mlx-lm's (`make_sampler`), so options mean the same here. All numbers but
counts are arguments, so a new temperature makes no new kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import mlx.core as mx

from .request import Sampling

# A token and the key for the next one, from logits [1, vocab_size] and this one's key.
Drawing = Callable[[mx.array, mx.array], tuple[mx.array, mx.array]]
# The token, its log probability, the likeliest ids and theirs, from logits and the token [1].
MostLikely = Callable[[mx.array, mx.array], tuple[mx.array, mx.array, mx.array, mx.array]]

_MOST_KEPT = 64  # functions: they hang on numbers that requests choose


class _Filters(NamedTuple):
    """The key of a compiled function: the filters in use, and their counts."""

    top_p: bool
    min_p: bool
    least: int
    xtc: bool
    spared: bool
    top_k: int


def drawing_of(sampling: Sampling, stop_ids: Sequence[int]) -> Drawing:
    """The function that draws tokens with this sampling; XTC never drops one of `stop_ids`."""
    xtc = sampling.xtc_probability > 0
    filters = _Filters(
        top_p=0 < sampling.top_p < 1,
        min_p=sampling.min_p > 0,
        least=sampling.min_tokens_to_keep if sampling.min_p > 0 else 1,
        xtc=xtc,
        spared=xtc and bool(stop_ids),
        top_k=sampling.top_k,
    )
    numbers = mx.array(
        [
            1 / (sampling.temperature or 1.0),
            sampling.top_p,
            math.log(sampling.min_p or 1.0),
            sampling.xtc_probability,
            sampling.xtc_threshold,
        ]
    )
    spared = mx.array(list(stop_ids), mx.int32)
    draw = _compiled(filters)
    return lambda logits, key: draw(logits, key, numbers, spared)


@lru_cache(maxsize=_MOST_KEPT)
def _compiled(
    filters: _Filters,
) -> Callable[[mx.array, mx.array, mx.array, mx.array], tuple[mx.array, mx.array]]:
    @mx.compile
    def draw(
        logits: mx.array, key: mx.array, numbers: mx.array, spared: mx.array
    ) -> tuple[mx.array, mx.array]:
        scale, top_p, log_min_p, chance, threshold = numbers
        key, now = mx.random.split(key)
        found = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        if filters.top_p:
            found = _within(found, top_p)
        if filters.min_p:
            found = _near_the_likeliest(found, log_min_p, filters.least)
        if filters.xtc:
            key, coin = mx.random.split(key)
            # mlx-lm throws this coin with the process's random state; ours is the request's.
            dropped = mx.random.uniform(key=coin) < chance
            found = _without_the_likeliest(
                found, threshold, dropped, spared if filters.spared else None
            )
        if 0 < filters.top_k < logits.shape[-1]:
            found = _the_first(found, filters.top_k)
        token = mx.random.categorical(found * scale.astype(found.dtype), key=now)
        return token.astype(mx.int32), key

    return draw


def _within(found: mx.array, most: mx.array) -> mx.array:
    """Top-p: the tokens whose likelier ones hold less than `most` of all probability."""
    ordered = mx.sort(found, axis=-1)
    chances = mx.exp(ordered.astype(mx.float32))
    above = mx.cumsum(chances, axis=-1, reverse=True, inclusive=False)
    whole = above[..., :1] + chances[..., :1]
    least = mx.where(above < most * whole, ordered, math.inf).min(axis=-1, keepdims=True)
    return mx.where(found < least, -math.inf, found)


def _near_the_likeliest(found: mx.array, distance: mx.array, kept: int) -> mx.array:
    """Min-p: the tokens within `distance` (log) of the likeliest, at least `kept` of them."""
    least = found.max(axis=-1, keepdims=True) + distance.astype(found.dtype)
    if 1 < kept < found.shape[-1]:
        least = mx.minimum(least, mx.topk(found, kept, axis=-1).min(axis=-1, keepdims=True))
    elif kept > 1:
        return found
    return mx.where(found < least, -math.inf, found)


def _without_the_likeliest(
    found: mx.array, threshold: mx.array, dropped: mx.array, spared: mx.array | None
) -> mx.array:
    """XTC: where `dropped`, of the tokens over the threshold only the least likely one stays."""
    chances = mx.softmax(found, axis=-1)
    over = mx.where(chances > threshold.astype(chances.dtype), chances, math.inf)
    gone = chances > over.min(axis=-1, keepdims=True)
    if spared is not None:
        gone[..., spared] = False
    return mx.where(dropped & gone, -math.inf, found)


def _the_first(found: mx.array, count: int) -> mx.array:
    """Top-k: the `count` likeliest tokens."""
    rest = mx.argpartition(found, kth=-count, axis=-1)[..., :-count]
    return mx.put_along_axis(found, rest, mx.array(-math.inf, found.dtype), axis=-1)


@lru_cache(maxsize=_MOST_KEPT)
def most_likely(count: int) -> MostLikely:
    """The function that finds the `count` likeliest tokens, in order, and how likely one was."""

    @mx.compile
    def told(logits: mx.array, token: mx.array) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        logits = logits.astype(mx.float32)
        found = (logits - mx.logsumexp(logits, axis=-1, keepdims=True))[0]
        ids = mx.argpartition(-found, kth=max(count - 1, 0))[:count]
        # Of equal ones the first in the vocabulary comes first, as in a sort of them all.
        ids = mx.sort(ids)
        chances = found[ids]
        order = mx.argsort(-chances)
        chosen = token.reshape(())
        return chosen, found[chosen], ids[order], chances[order]

    return told
