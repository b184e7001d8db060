"""Nearness of two runs of a model: logits, rows, and what of a difference is rounding."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import Final, cast

import mlx.core as mx

from ..cache.layers.pieces import Piece

# As for batches (batch_probe.py): times the model's own rounding, times the last bit of the largest
# logit, law 1's bound for float32, and of the logits' range no more than this part.
_TIMES_OWN: Final = 4.0
_TIMES_LAST_BIT: Final = 2.0
_LEAST: Final = 1e-4
_MOST_OF_RANGE: Final = 0.05
# What other chunks may change, whatever the model: so many last bits of the largest logit, and at
# most this part of it. Measured in last bits, with tiny random models of all families and the
# default one's 30 layers: up to 16 in float32 between chunks; between 16 bits and float32 up to 14
# in bfloat16 and 61 in float16. Another prompt's logits are off by half of the largest and more.
_MOST_LAST_BITS: Final = 256.0
_MOST_OF_LARGEST: Final = 0.25
_TF32: Final = 2.0**-10  # a GPU may multiply float32 so


def distance(one: mx.array, other: mx.array) -> float:
    """The largest difference; infinite where one is no number."""
    one, other = one.astype(mx.float32), other.astype(mx.float32)
    apart = _number(mx.where(one == other, 0.0, mx.abs(one - other)).max())
    return float("inf") if isnan(apart) else apart


def same(one: mx.array, other: mx.array) -> bool:
    """Tell whether two arrays are equal bit for bit."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    if not one.size:
        return True
    left, right = (values.reshape(-1).view(mx.uint8) for values in (one, other))
    return bool(_number(mx.array_equal(left, right)))


def same_rows(one: Sequence[Piece | None], other: Sequence[Piece | None]) -> bool:
    """Tell whether all arrays of two spans are equal, those of a layer in their order."""
    return all(map(_same_piece, one, other)) and len(one) == len(other)


def rounding_of(apart: float, logits: mx.array) -> float:
    """The most that logits may be off, where two runs without any cache are so far apart."""
    finite = mx.where(mx.isfinite(logits), logits, 0).astype(mx.float32)
    last_bit = mx.finfo(logits.dtype).eps * largest(logits)
    own = min(_TIMES_OWN * apart, _MOST_OF_RANGE * _number(finite.max() - finite.min()))
    return max(own, _TIMES_LAST_BIT * last_bit, _LEAST)


def most_rounding(logits: mx.array, coarsest: mx.Dtype) -> float:
    """The most that rounding takes logits from those of other chunks, in any model that is right.

    `coarsest` is the dtype with the fewest bits that the model computes in.
    """
    gpu = mx.default_device().type == mx.DeviceType.gpu
    bit = max(mx.finfo(coarsest).eps, mx.finfo(logits.dtype).eps, _TF32 if gpu else 0.0)
    return min(_MOST_LAST_BITS * bit, _MOST_OF_LARGEST) * largest(logits)


def largest(logits: mx.array) -> float:
    """The largest finite logit, without its sign."""
    finite = mx.where(mx.isfinite(logits), logits, 0).astype(mx.float32)
    return _number(mx.abs(finite).max())


def _same_piece(one: Piece | None, other: Piece | None) -> bool:
    if one is None or other is None or len(one) != len(other):
        return one is other
    return all(
        a is b if a is None or b is None else same(a, b) for a, b in zip(one, other, strict=True)
    )


def _number(one: mx.array) -> float:
    return cast("float", one.item())
