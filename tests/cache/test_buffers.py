"""Buffers of the device: counted in whole pages, bounded in number, and freed ones given back."""

import random
from itertools import pairwise

import mlx.core as mx
import played_layers
import pytest
from played_layers import FAMILIES, layers_of
from played_macs import BUFFERS, PAGE

from llm_mlx_promptcache.cache.insertion import Rows
from llm_mlx_promptcache.cache.layers import device_memory, pieces
from llm_mlx_promptcache.cache.prompt_cache import PromptCache

HEADS, WIDTH = 2, 64
ROW = HEADS * WIDTH * 2  # of one array, float16


def words(seed, count):
    return random.Random(seed).choices(range(1000), k=count)


def filled(tokens, family="rows"):
    return played_layers.play(layers_of(family), tokens, HEADS, WIDTH)


def held(cache):
    return cache.stats()["memory"]


def in_pages(nbytes):
    return -(-nbytes // PAGE) * PAGE


@pytest.mark.parametrize("tokens", [1, 15, 64, 65, 500])
def test_law_16_a_span_counts_in_whole_pages(play, tokens):
    play(16)
    cache = PromptCache("1GB")
    cache.insert("m", words(1, tokens), filled(words(1, tokens)))
    assert held(cache)["bytes"] == 4 * 2 * in_pages(tokens * ROW)
    assert held(cache)["buffers"] == 4 * 2
    assert cache.check() == []


@pytest.mark.parametrize("family", FAMILIES)
def test_law_16_pages_and_buffers_are_right_whatever_becomes_of_spans(play, family):
    play(16)
    cache = PromptCache("1MB")
    for seed in range(40):
        shared = words(seed % 3, 10 + seed % 7)
        tokens = shared + words(seed, 40)
        rows = Rows.GIVE if seed % 2 else Rows.COPY
        lease = cache.fetch("m", [*tokens, 1], rows=rows)
        if lease.layers is None:
            cache.insert("m", tokens, filled(tokens, family), "user", rows=Rows.RETURN)
        else:
            more = played_layers.play(lease.layers, tokens[lease.cached :], HEADS, WIDTH)
            cache.insert("m", tokens, more, rows=Rows.RETURN)
        assert cache.check() == []
        assert held(cache)["bytes"] <= 1_000_000
    assert sum(cache.stats()["evicted"].values()) > 10
    cache.trim_to(memory_bytes=0)
    assert (held(cache)["bytes"], held(cache)["buffers"]) == (0, 0)


@pytest.mark.parametrize("pages", [10, 10.5])
def test_law_10_of_a_path_that_is_too_large_whole_pages_fit(play, pages):
    play(16)
    cache = PromptCache(int(8 * pages * PAGE))  # eight arrays of so many pages of 64 rows
    assert 560 < cache.insert("m", words(1, 2000), filled(words(1, 2000))) <= 640
    assert 0 < held(cache)["bytes"] <= 8 * 10 * PAGE
    assert cache.check() == []


def test_no_more_buffers_are_held_than_half_of_those_that_can_exist(play):
    play(16, buffers=100)
    cache = PromptCache("1GB")
    for seed in range(30):
        cache.insert("m", words(seed, 20), filled(words(seed, 20)))
        assert held(cache)["buffers"] <= 50
    assert held(cache)["buffers"] == 48
    assert cache.fetch("m", [*words(29, 20), 1]).cached == 20


def test_a_budget_of_pages_alone_bounds_buffers_up_to_four_gigabytes(play):
    play(128)
    assert 4_000_000_000 // PAGE < BUFFERS // 2  # each buffer counts a page at least
    assert PromptCache("64GB")._budget.limits.buffers == BUFFERS // 2


def test_a_budget_that_shrinks_evicts_and_holds(play):
    play(16)
    cache = PromptCache("4MB")
    for seed in range(20):
        cache.insert("m", words(seed, 60), filled(words(seed, 60)))
    cache.resize("1MB")
    assert 0 < held(cache)["bytes"] <= held(cache)["budget"] == 1_000_000
    for seed in range(20, 40):
        cache.insert("m", words(seed, 60), filled(words(seed, 60)))
        assert held(cache)["bytes"] <= 1_000_000


def test_law_16_stats_tell_what_mlx_holds_and_what_it_pools(play):
    play(16)
    cache = PromptCache("1GB")
    cache.insert("m", words(1, 500), filled(words(1, 500)))
    mx.clear_cache()
    before = held(cache)
    freed = mx.zeros((1 << 20,), mx.uint8)
    mx.eval(freed)
    assert held(cache)["active"] >= before["active"] + (1 << 20)
    del freed
    after = held(cache)
    assert after["pool"] >= before["pool"] + (1 << 20)
    assert after["active"] == before["active"] >= after["held"] >= after["bytes"] // 2
    device_memory.trim_pool()
    assert held(cache)["pool"] == 0


def turn(cache, path, sample):
    """A turn on a long conversation: its rows move into layers, grow and are returned."""
    lease = cache.fetch("m", [*path, 1], headroom=300, rows=Rows.GIVE)
    assert lease.cached == len(path)
    layers = lease.layers
    del lease
    more = path + words(99, 30)
    played_layers.play(layers, more[len(path) :], HEADS, WIDTH)
    sample()
    cache.insert("m", more, layers, rows=Rows.RETURN)
    sample()
    return more


def peak_of_a_turn(monkeypatch, spans):
    """The most that MLX held and pooled together over a turn, times the conversation's rows."""
    before, cache, path = mx.get_active_memory(), PromptCache("10GB"), words(1, 16_000)
    steps = [*range(0, len(path), len(path) // spans), len(path)]
    layers = layers_of("rows") + layers_of("rows")
    for start, end in pairwise(steps):
        played_layers.play(layers, path[start:end], HEADS, WIDTH)
        cache.insert("m", path[:end], layers)
    del layers
    mx.clear_cache()
    rows, most, real = held(cache)["bytes"], [0], mx.eval

    def sample():
        most.append(mx.get_active_memory() - before + mx.get_cache_memory())

    def evaluated(*arrays):
        sample()
        real(*arrays)
        sample()

    with monkeypatch.context() as patched:
        patched.setattr(mx, "eval", evaluated)
        sample()
        turn(cache, path, sample)
    assert cache.check() == []
    return max(most) / rows


@pytest.mark.parametrize("spans", [1, 7])
def test_a_turn_peaks_at_little_more_than_its_rows_with_the_pool(play, monkeypatch, spans):
    play(16)
    assert peak_of_a_turn(monkeypatch, spans) < 1.25


def test_without_giving_buffers_back_it_would_be_near_twice(play, monkeypatch):
    play(16)
    for module in (pieces, device_memory):
        monkeypatch.setattr(module, "trim_pool", lambda most=0: None)
    assert peak_of_a_turn(monkeypatch, 7) > 1.6


def test_the_rows_of_one_part_keep_no_larger_array_alive():
    """As a view of a file's bytes would, which has other layers' rows too."""
    before = mx.get_active_memory()
    whole = mx.zeros((1, 1, 100_000, 4))
    (made,) = pieces.joined([[whole[..., :1000, :]]], 0)
    mx.eval(made)
    del whole
    assert mx.get_active_memory() - before < 2 * made.nbytes + 20_000
