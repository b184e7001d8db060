"""A path is read in few rounds; memory for the next one is asked for before one is waited for."""

import os

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache, RotatingKVCache

from llm_mlx_promptcache.cache.disk import span_bytes, streams
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


@pytest.mark.parametrize("ends", [streams._GROUPS, streams._IN_PLACE, streams._IN_PLACE_ON_CPU])
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
    on_cpu = rounds([3] * LAYERS, streams._IN_PLACE_ON_CPU, 0, monkeypatch)
    assert max(len(now) for now in on_cpu) <= -(-LAYERS // 20)


@pytest.fixture
def stored(tmp_path):
    """A folder with a path of one file."""
    layers = [KVCache() for _ in range(LAYERS)]
    for layer in layers:
        layer.update_and_fetch(*(mx.ones((1, 2, len(TOKENS), 8)) for _ in range(2)))
    cache = PromptCache("1GB", DiskStore(tmp_path))
    cache.insert("m", TOKENS, layers)
    cache.flush()
    return tmp_path


def restored(folder):
    lease = PromptCache("1GB", DiskStore(folder)).fetch("m", [*TOKENS, 1])
    assert lease.cached == len(TOKENS)
    return lease


def test_memory_is_asked_for_before_what_was_asked_before_is_waited_for(stored, monkeypatch):
    monkeypatch.setattr(streams, "_LEAST", 0)
    events = []
    begin, wait, read = mx.async_eval, mx.eval, streams.InPlace.read_into
    with monkeypatch.context() as patch:
        patch.setattr(mx, "async_eval", lambda *a: events.append("begun") or begin(*a))
        patch.setattr(mx, "eval", lambda *a: events.append("there") or wait(*a))
        patch.setattr(streams.InPlace, "read_into", lambda *a: events.append("read") or read(*a))
        restored(stored)
    count = len(streams._IN_PLACE_ON_CPU)
    assert events == [
        "begun",
        *["begun", "there", "read"] * (count - 1),
        "there",
        "read",
    ]


def test_buffers_of_pieces_are_asked_for_a_round_ahead_too(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "_LEAST", 0)
    layers = [KVCache(), *(RotatingKVCache(64) for _ in range(3))]
    for layer in layers:
        layer.update_and_fetch(*(mx.ones((1, 2, len(TOKENS), 8)) for _ in range(2)))
    cache = PromptCache("1GB", DiskStore(tmp_path))
    cache.insert("m", TOKENS, layers)
    cache.flush()
    events = []
    begin, read = streams.InPieces._begun, streams.InPieces.read_into
    with monkeypatch.context() as patch:
        patch.setattr(streams.InPieces, "_begun", lambda *a: events.append("begun") or begin(*a))
        patch.setattr(streams.InPieces, "read_into", lambda *a: events.append("read") or read(*a))
        restored(tmp_path)
    assert events == ["begun", *["begun", "read"] * (len(layers) - 1), "read"]


def test_new_memory_is_asked_of_two_of_mlxs_threads_in_turn(stored, monkeypatch):
    """On a CPU, where most of a restore is the system handing out pages."""
    asked, zeros = [], mx.zeros
    with monkeypatch.context() as patch:
        patch.setattr(mx, "zeros", lambda *a, **k: asked.append(k.get("stream")) or zeros(*a, **k))
        lease = restored(stored)
    assert len(asked) == LAYERS * 2
    assert len({id(stream) for stream in asked}) == 2
    assert asked[0::2] == [None] * LAYERS
    # What another stream made is the default one's to go on with.
    for layer in lease.layers:
        layer.update_and_fetch(*(mx.full((1, 2, 1, 8), 2.0) for _ in range(2)))
    assert all(mx.all(layer.keys[..., : len(TOKENS), :] == 1).item() for layer in lease.layers)


def test_on_a_gpu_memory_is_asked_of_the_default_stream_alone(monkeypatch):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu, 0))
    assert streams.streams_of_zeros() == [None]


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no advice")
@pytest.mark.parametrize("at_hand", [True, False])
def test_a_file_that_the_system_has_in_memory_is_not_asked_for_again(stored, monkeypatch, at_hand):
    """Advice on each of its megabytes costs a tenth of such a restore."""
    advised, asked = [], []

    def preadv(_descriptor, buffers, at, flags):
        asked.append(at)
        assert flags == os.RWF_NOWAIT
        if not at_hand:
            raise BlockingIOError
        return len(buffers[0])

    monkeypatch.setattr(span_bytes, "_AHEAD", 1000)
    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(os, "posix_fadvise", lambda *a: advised.append(a[1]))
    restored(stored)
    (path,) = (stored / "spans").iterdir()
    size = path.stat().st_size
    assert asked[0] == size - 1
    assert len(asked) == (4 if at_hand else 1)
    assert advised == ([] if at_hand else list(range(0, size, 1000)))
