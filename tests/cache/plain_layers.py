"""Layers whose rows are digests of their tokens, for mlx-lm's interface and for ours."""

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache, KVCache

WIDTH = 4
ROW = 2 * WIDTH * 4  # keys and values of one layer, float32


def rows(tokens, kind=KVCache):
    """One layer whose row at a token is a digest of all tokens up to it, as attention's are."""
    layer, digest, values = kind(), 1, []
    for token in tokens:
        digest = (digest * 31 + token + 1) % 65_521
        values.append([float(digest)] * WIDTH)
    block = mx.array(values).reshape(1, 1, len(tokens), WIDTH)
    layer.update_and_fetch(block, -block)
    mx.eval(layer.state)  # what is waiting can't be computed in another thread
    return layer


def state(tokens):
    """A recurrent layer after these tokens."""
    layer = ArraysCache(1)
    layer[0] = mx.array([float(hash(tuple(tokens)) % 1000)] * WIDTH)
    return layer


def held(layers):
    """The content of layers as plain values, without the unused ends of their buffers."""
    if layers is None:
        return None
    return [
        [a.tolist() for a in layer.cache]
        if isinstance(layer, ArraysCache)
        else [a[..., : layer.offset, :].tolist() for a in (layer.keys, layer.values)]
        for layer in layers
    ]


def put(cache, tokens, tier="assistant", layer=rows):
    cache.insert_cache("m", list(tokens), [layer(tokens)], cache_type=tier)
