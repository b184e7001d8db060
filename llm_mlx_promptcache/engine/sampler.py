"""The choice of the next token: penalties, then a sampler with a random key of its own.

Each request has its own key, so a seed gives the same answer whatever else runs, and penalties
see the same window of tokens whether the prompt came from the cache or not.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import mlx.core as mx

from .drawing import drawing_of, most_likely
from .events import Logprob, TokenLogprobs
from .request import Sampling

# The state that a choice changes, so that an abandoned one can be made again.
SamplerMark = tuple[mx.array | None, mx.array | None]


class Sampler:
    """A sampler for one request, token by token; `prompt` is what precedes its answer."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], stop_ids: Sequence[int]) -> None:
        self._sampling = sampling
        self._key = _key(sampling)
        self._drawing = drawing_of(sampling, stop_ids)
        self._bias = _bias(sampling)
        self._forbids = any(amount == -math.inf for _, amount in sampling.logit_bias)
        self._recent: mx.array | None = None
        if sampling.has_penalties and sampling.penalty_window:
            self._recent = mx.array(list(prompt[-sampling.penalty_window :]), mx.int32)

    @property
    def takes_likeliest(self) -> bool:
        """True if it always takes the likeliest token, so that several can be taken at once."""
        return self._key is None and self._bias is None and self._recent is None

    def choose(self, logits: mx.array) -> mx.array:
        """The next token, [1], from logits [1, vocab_size]; nothing is evaluated."""
        if self._bias is not None:
            ids, amounts = self._bias
            biased = logits.at[:, ids].add(amounts.astype(logits.dtype))
            logits = _with_what_is_forced(logits, biased) if self._forbids else biased
        if self._recent is not None:
            logits = _penalised(logits, self._recent, self._sampling)
        if self._key is None:
            token = mx.argmax(logits, axis=-1).astype(mx.int32)
        else:
            token, self._key = self._drawing(logits, self._key)
        if self._recent is not None:
            # Lazy like the token itself, so that the next step is on its way before it is known.
            recent = mx.concatenate([self._recent, token])
            self._recent = recent[-self._sampling.penalty_window :]
        return token

    def follow(self, tokens: Sequence[int]) -> None:
        """Follow tokens that a grammar forced: in a batch each of them would have been a choice."""
        for _ in tokens:
            if self._key is not None:
                self._key, _now = mx.random.split(self._key)
                if self._sampling.xtc_probability > 0:
                    self._key, _coin = mx.random.split(self._key)
        if self._recent is not None and tokens:
            recent = mx.concatenate([self._recent, mx.array(list(tokens), mx.int32)])
            self._recent = recent[-self._sampling.penalty_window :]

    def mark(self) -> SamplerMark:
        """The sampler's state before a choice."""
        return self._key, self._recent

    def reset(self, mark: SamplerMark) -> None:
        """Restore the state at `mark`."""
        self._key, self._recent = mark


def _key(sampling: Sampling) -> mx.array | None:
    if sampling.temperature == 0:
        return None
    seed = secrets.randbits(63) if sampling.seed is None else sampling.seed % 2**64
    key: mx.array = mx.random.key(seed)
    return key


def _bias(sampling: Sampling) -> tuple[mx.array, mx.array] | None:
    if not sampling.logit_bias:
        return None
    ids, amounts = zip(*sampling.logit_bias, strict=True)
    return mx.array(ids), mx.array(amounts)


def _with_what_is_forced(logits: mx.array, biased: mx.array) -> mx.array:
    """The biased logits, and the unbiased ones where a grammar has left a single token.

    An answer that is alone gets such tokens in runs, whatever forbids them; so it must where there
    is no run, beside others or at a draft's end.
    """
    only = mx.sum(logits > -mx.inf, axis=-1, keepdims=True) == 1
    return mx.where(only, logits, biased)


def _penalised(logits: mx.array, recent: mx.array, sampling: Sampling) -> mx.array:
    """Logits of recent tokens lowered: by a factor, once each, and by how often they came."""
    counts = mx.zeros(logits.shape[-1:], mx.float32).at[recent].add(1.0)
    seen = counts > 0
    if sampling.repetition_penalty != 1:
        penalty = sampling.repetition_penalty
        lowered = mx.where(logits < 0, logits * penalty, logits / penalty)
        logits = mx.where(seen, lowered, logits)
    amount = sampling.presence_penalty * seen + sampling.frequency_penalty * counts
    return logits - amount.astype(logits.dtype)


class Likely(NamedTuple):
    """The likeliest tokens where one was chosen: arrays that are not evaluated yet."""

    token: mx.array
    logprob: mx.array
    ids: mx.array
    logprobs: mx.array

    @classmethod
    def of(cls, logits: mx.array, token: mx.array, count: int) -> Likely:
        """The likeliest of logits [1, vocab_size] as the model gave them, `count` alternatives."""
        return cls(*most_likely(min(count, logits.shape[-1]))(logits, token))

    def arrays(self) -> tuple[mx.array, ...]:
        """All arrays that have to be evaluated."""
        return tuple(self)

    def told(self, data: Callable[[int], bytes]) -> TokenLogprobs:
        """The same as plain data; `data` gives the bytes of a token."""

        def one(id: int, value: float) -> Logprob:
            return Logprob(id, data(id).decode("utf-8", "replace"), value, tuple(data(id)))

        token = cast("int", self.token.item())
        ids = cast("list[int]", self.ids.tolist())
        logprobs = cast("list[float]", self.logprobs.tolist())
        top = tuple(one(id, value) for id, value in zip(ids, logprobs, strict=True))
        return TokenLogprobs(one(token, cast("float", self.logprob.item())), top)
