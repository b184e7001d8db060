"""A path is read in few rounds; memory for the next one is asked for before one is waited for."""

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache

from llm_mlx_promptcache.cache.disk import streams
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.prompt_cache import PromptCache

LAYERS = 30
TOKENS = list(range(50))


class Sized:
    """A file of layers of so many bytes each."""

    def __init__(self, sizes):
        self.head = type("Head", (), {"layout": (None,) * len(sizes)})
        self.sizes = sizes

    def extent(self, first, last):
        return sum(self.sizes[:first]), sum(self.sizes[:last])


def rounds(sizes, ends, least, monkeypatch):
    monkeypatch.setattr(streams, "_LEAST", least)
    return list(streams._Stream([Sized(sizes)], None).rounds(ends))


@pytest.mark.parametrize("ends", [streams._GROUPS, streams._IN_PLACE])
@pytest.mark.parametrize(
    "sizes", [[7], [3] * LAYERS, list(range(1, 40)), [0, 0, 5, 0], [1000, *[1] * 20], [0]]
)
@pytest.mark.parametrize("least", [0, 10, 10**6])
def test_the_rounds_hold_each_layer_once_in_order(sizes, ends, least, monkeypatch):
    found = rounds(sizes, ends, least, monkeypatch)
    assert [layer for now in found for layer in now] == list(range(len(sizes)))
    assert 0 < len(found) <= len(ends)
    for now in found[:-1]:
        more = range(now.start, now.stop + 1)
        assert sum(sizes[layer] for layer in more) > least


def test_what_is_read_behind_the_last_memory_is_little(monkeypatch):
    lengths = [len(now) for now in rounds([3] * LAYERS, streams._IN_PLACE, 0, monkeypatch)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] == LAYERS // 10


def test_memory_is_asked_for_before_what_was_asked_before_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "_LEAST", 0)
    layers = [KVCache() for _ in range(LAYERS)]
    for layer in layers:
        layer.update_and_fetch(*(mx.ones((1, 2, len(TOKENS), 8)) for _ in range(2)))
    cache = PromptCache("1GB", DiskStore(tmp_path))
    cache.insert("m", TOKENS, layers)
    cache.flush()
    events = []
    begin, wait, read = mx.async_eval, mx.eval, streams.InPlace.read_into
    with monkeypatch.context() as patch:
        patch.setattr(mx, "async_eval", lambda *a: events.append("begun") or begin(*a))
        patch.setattr(mx, "eval", lambda *a: events.append("there") or wait(*a))
        patch.setattr(streams.InPlace, "read_into", lambda *a: events.append("read") or read(*a))
        lease = PromptCache("1GB", DiskStore(tmp_path)).fetch("m", [*TOKENS, 1])
    assert lease.cached == len(TOKENS)
    count = len(streams._IN_PLACE)
    assert events == [
        "begun",
        *["begun", "there", "read"] * (count - 1),
        "there",
        "read",
    ]
