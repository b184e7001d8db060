"""Layers that go back: nothing of a pass stays in them, however many tokens it had."""

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ConcatenateKVCache, KVCache, RotatingKVCache

from llm_mlx_promptcache.cache.layers.rewinding import marks_of, rewind

WINDOW = 4


def rows(count, start):
    return mx.arange(start, start + count, dtype=mx.float32).reshape(1, 1, count, 1)


def seen(layer):
    """The rows that a layer holds, in their places, and where it stands."""
    held = min(layer.offset, layer.keys.shape[-2])
    found = [part[..., :held, :].flatten().tolist() for part in (layer.keys, layer.values)]
    return found, layer.offset, getattr(layer, "_idx", None)


@pytest.mark.parametrize("kind", [KVCache, ConcatenateKVCache, lambda: RotatingKVCache(WINDOW)])
@pytest.mark.parametrize("held", [2, 4, 6, 9])
@pytest.mark.parametrize("fed", [1, 3])
def test_law_1_nothing_of_a_pass_stays_behind_a_mark(kind, held, fed):
    layer, other = kind(), kind()
    for at in range(held):
        for one in (layer, other):
            one.update_and_fetch(rows(1, at), rows(1, at))
    marks = marks_of([layer], least=0)
    for _ in range(2):  # a mark serves as often as it is asked for
        layer.update_and_fetch(rows(fed, 99), rows(fed, 99))
        assert rewind([layer], marks, fed, 0) == 0
    assert seen(layer) == seen(other)
