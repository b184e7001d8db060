"""Layers of every kind, filled without a model: their content follows from the tokens alone."""

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, RotatingKVCache

WINDOW = 48


def layers_of(family):
    """New layers of a model of that family."""
    return {
        "rows": lambda: [KVCache() for _ in range(4)],
        "windows": lambda: [KVCache(), *(RotatingKVCache(WINDOW) for _ in range(3))],
        "state": lambda: [KVCache(), ArraysCache(2), KVCache(), ArraysCache(1)],
        "lists": lambda: [CacheList(KVCache(), RotatingKVCache(WINDOW)) for _ in range(3)],
    }[family]()


FAMILIES = ("rows", "windows", "state", "lists")


def play(layers, tokens, heads=2, width=4):
    """Run tokens through layers as a model does: rows grow, state is replaced."""
    for layer in layers:
        if isinstance(layer, CacheList):
            play(layer.caches, tokens, heads, width)
        elif isinstance(layer, ArraysCache):
            layer.cache = [_state(tokens, slot, a) for slot, a in enumerate(layer.cache)]
        else:
            values = mx.array(tokens, mx.float16).reshape(1, 1, -1, 1)
            rows = mx.broadcast_to(values, (1, heads, len(tokens), width))
            layer.update_and_fetch(rows, -rows)
    mx.eval([layer.state for layer in layers])
    return layers


def _state(tokens, slot, before):
    """A digest of all tokens so far, exact in float32 and the same however they are cut."""
    digest = 1 + slot if before is None else int(before[0, 0].item())
    for token in tokens:
        digest = (digest * 31 + token + 1) % 65_521
    return mx.full((1, 256), float(digest))


def same(layers, others):
    """True if two lists of layers hold the same, without the unused ends of their buffers."""
    pairs = zip(layers, others, strict=True)
    return all(_same(layer, other) for layer, other in pairs)


def _same(layer, other):
    if isinstance(layer, CacheList):
        return same(layer.caches, other.caches)
    if isinstance(layer, ArraysCache):
        pairs = list(zip(layer.cache, other.cache, strict=True))
    else:
        if layer.offset != other.offset:
            return False
        pairs = [(_rows(layer, a), _rows(other, b)) for a, b in _buffers(layer, other)]
    return all(mx.array_equal(a, b).item() for a, b in pairs)


def _buffers(layer, other):
    return [(layer.keys, other.keys), (layer.values, other.values)]


def _rows(layer, buffer):
    if isinstance(layer, RotatingKVCache):
        return layer._temporal_order(buffer)[..., -min(layer.offset, WINDOW) :, :]
    return buffer[..., : layer.offset, :]
