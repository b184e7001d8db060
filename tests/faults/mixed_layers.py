"""The worlds of the fault tests with layers of other kinds beside, or in place of, rows."""

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache, KVCache

WINDOW = 16


def in_world(worlds, monkeypatch, made, dtype=mx.float32):
    """Have a world's layers be those that `made()` returns, filled from the tokens alone."""

    def layers_for(ids):
        values = mx.array(worlds.rows(ids)).astype(dtype)
        block = mx.stack([values, values * 2], axis=-1)[None, None]
        layers = made()
        for layer in layers:
            if isinstance(layer, ArraysCache):
                layer.cache = [block[0, 0, -1:], None]
            else:
                layer.update_and_fetch(block, block + 1)
        return layers

    def right(layers, ids):
        pairs = zip(layers, layers_for(ids), strict=True)
        return all(
            (a is None and b is None) or mx.array_equal(a, b).item()
            for found, wanted in pairs
            for a, b in zip(_held(found), _held(wanted), strict=True)
        )

    monkeypatch.setattr(worlds, "layers_for", layers_for)
    monkeypatch.setattr(worlds, "right", right)
    return worlds


def _held(layer):
    if isinstance(layer, ArraysCache):
        return layer.cache
    if isinstance(layer, KVCache):
        return [a[..., : layer.offset, :] for a in (layer.keys, layer.values)]
    held = min(layer.offset, WINDOW)
    return [layer._temporal_order(a)[..., -held:, :] for a in (layer.keys, layer.values)]
