"""Samplers: each request has its own random key, so a seed gives the same answer every time."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import mlx.core as mx
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

from .request import Sampling

Sampler = Callable[[mx.array], mx.array]


def make_sampler(sampling: Sampling) -> Sampler:
    """A function from logits [1, words] to a token [1], by the rules of `sampling`."""
    if sampling.temperature == 0:
        return lambda logits: mx.argmax(logits, axis=-1)
    seed = secrets.randbits(63) if sampling.seed is None else sampling.seed % 2**64
    key = mx.random.key(seed)

    def sample(logits: mx.array) -> mx.array:
        nonlocal key
        key, now = mx.random.split(key)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        # The order of mlx-lm's own sampler, so that options mean the same here.
        if 0 < sampling.top_p < 1:
            logprobs = apply_top_p(logprobs, sampling.top_p)
        if sampling.min_p > 0:
            logprobs = apply_min_p(logprobs, sampling.min_p)
        if 0 < sampling.top_k < logprobs.shape[-1]:
            logprobs = apply_top_k(logprobs, sampling.top_k)
        return mx.random.categorical(logprobs / sampling.temperature, key=now)

    return sample
