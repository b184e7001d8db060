"""PromptCache's laws on a model of rows; the numbers are DESIGN's."""

import random

import mlx.core as mx
import pytest
from cache_counters import counted
from mlx_lm.models.cache import KVCache, RotatingKVCache

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.cache.store import NullStore

IDS = random.Random(1).choices(range(100), k=60)
FORK = [*IDS[:40], *random.Random(2).choices(range(100), k=20)]


def close(a, b):
    return bool(mx.allclose(a, b, atol=1e-4, rtol=0))


@pytest.fixture
def cache(store):
    made = PromptCache("100MB", store)
    yield made
    assert made.check() == []
    assert not isinstance(store, DiskStore) or store.check() == []


def restarted(cache):
    """The cache of the next process: the same store, nothing in memory."""
    cache.flush()
    return PromptCache("100MB", cache._store)


@pytest.fixture(scope="module")
def cold(run, greedy):
    """The logits behind IDS on nothing cached, and the answer from there."""
    return run(IDS)[0], greedy(IDS)


@pytest.mark.parametrize("at", range(1, 60))
def test_law_1_a_warm_answer_equals_the_cold_one_at_every_point(cache, run, greedy, cold, at):
    cache.insert("m", IDS[:at], run(IDS[:at])[1])
    lease = cache.fetch("m", IDS, headroom=20)
    assert lease.cached == at
    warm, layers = run(IDS[at:], lease.layers)
    logits, answer = cold
    assert close(warm, logits)
    last = [int(mx.argmax(warm).item())]
    assert [*last, *greedy(last, layers, len(answer) - 1)] == answer


@pytest.mark.parametrize("at", [1, 17, 39, 40, 41, 59])
def test_law_1_after_a_split_a_fork_and_a_restart(cache, run, at):
    cache.insert("m", IDS, run(IDS)[1])
    forked = IDS[:at] + FORK[at:]
    forked = forked if forked != IDS else [*IDS[:-1], 99]
    lease = cache.fetch("m", forked)
    cache.insert("m", forked, run(forked[lease.cached :], lease.layers)[1])
    caches = [cache] if isinstance(cache._store, NullStore) else [cache, restarted(cache)]
    for one in caches:
        for path in (IDS, forked):
            lease = one.fetch("m", [*path, 5])
            assert lease.cached == 60
            assert close(run([5], lease.layers)[0], run([*path, 5])[0])


def test_law_1_a_restart_gives_the_same_answer_from_the_disk(tmp_path, run):
    cache = PromptCache("100MB", DiskStore(tmp_path))
    cache.insert("m", IDS, run(IDS)[1])
    lease = restarted(cache).fetch("m", FORK)
    assert lease.cached == 40
    assert close(run(FORK[40:], lease.layers)[0], run(FORK)[0])


@pytest.mark.parametrize("length", [1, 2, 30, 60])
def test_law_2_one_token_is_always_left(cache, run, length):
    cache.insert("m", IDS, run(IDS)[1])
    assert cache.fetch("m", IDS[:length]).cached == length - 1


def test_law_4_a_shared_prefix_is_stored_once(cache, run, store):
    system = IDS[:40]
    for seed in range(20):
        path = [*system, *random.Random(seed + 10).choices(range(100), k=10)]
        lease = cache.fetch("m", path)
        layers = run(path[lease.cached :], lease.layers)[1]
        cache.insert("m", system, layers, "system")
        cache.insert("m", path, layers)
    cache.flush()
    row = 3 * 2 * 2 * 8 * 4  # layers x keys and values x heads x width x bytes
    memory = cache.stats()["memory"]
    assert memory["bytes"] == memory["tokens"] * row
    assert memory["tokens"] <= 40 + 20 * 10
    if isinstance(store, DiskStore):
        assert store.stats()["tokens"] == memory["tokens"]


def test_law_9_stored_rows_never_change(cache, run):
    cache.insert("m", IDS, run(IDS)[1])
    nodes = list(cache._tree.nodes())
    before = [mx.array(a) for n in nodes for piece in n.value.pieces for a in piece]
    mx.eval(before)
    for room in (0, 5, 300):
        lease = cache.fetch("m", [*IDS, 1], room)
        run(list(range(20)), lease.layers)
    after = [a for n in nodes for piece in n.value.pieces for a in piece]
    assert all(bool(mx.array_equal(a, b)) for a, b in zip(before, after, strict=True))


def test_a_span_holds_its_own_rows_and_not_the_buffer(cache, run):
    cache.insert("m", IDS[:3], run(IDS)[1])
    assert all(a.shape[-2] == 3 for n in cache._tree.nodes() for p in n.value.pieces for a in p)


def test_eviction_keeps_to_the_budget_and_spares_the_system_prompt(run):
    row = 3 * 2 * 2 * 8 * 4
    cache = PromptCache(row * 80)
    for seed in range(10):
        path = [*IDS[:30], *random.Random(seed + 50).choices(range(100), k=25)]
        layers = run(path)[1]
        cache.insert("m", IDS[:30], layers, "system")
        cache.insert("m", path, layers)
        assert cache.stats()["memory"]["bytes"] <= row * 80
        assert cache.check() == []
    assert cache.fetch("m", [*IDS[:30], 99]).cached == 30


def test_what_leaves_memory_is_on_the_disk(tmp_path, run):
    row = 3 * 2 * 2 * 8 * 4
    cache = PromptCache(row * 70, DiskStore(tmp_path))
    cache.insert("m", IDS, run(IDS)[1])
    cache.insert("m", FORK[::-1], run(FORK[::-1])[1])
    lease = cache.fetch("m", [*IDS, 3])
    assert lease.cached == 60
    assert close(run([3], lease.layers)[0], run([*IDS, 3])[0])


def test_namespaces_never_meet(cache, run):
    cache.insert("m", IDS, run(IDS)[1])
    assert cache.fetch("other", IDS).layers is None
    assert cache.fetch("m", IDS).cached == 59


def test_each_span_is_written_once(tmp_path, run):
    store = DiskStore(tmp_path)
    cache = PromptCache("100MB", store)
    for end in (20, 40, 60):
        cache.insert("m", IDS[:end], run(IDS[:end])[1])
        cache.flush()
    written = store.stats()["written"]
    cache.insert("m", IDS, run(IDS)[1])
    assert cache.flush() == 0
    assert store.stats() | {"written": written} == store.stats()
    again = restarted(cache)
    again.insert("m", IDS, run(IDS)[1])
    assert again.flush() == 0


def test_a_wrong_call_is_refused_by_name_and_changes_nothing(cache, run):
    layers = run(IDS)[1]
    cache.insert("m", IDS[:30], layers)
    lease = cache.fetch("m", IDS)
    others = [KVCache() for _ in range(2)]
    windows = [RotatingKVCache(8) for _ in range(3)]
    uneven = run(IDS)[1]
    uneven[1].trim(3)
    before = counted(cache)
    for tokens, given, words in [
        ([], layers, "tokens is empty"),
        ([1.5], layers, "tokens must be integers"),
        ([-1], layers, "tokens must be integers"),
        (IDS, others, "another model"),
        (IDS, windows, "another model"),
        (IDS, [object()] * 3, "class object can't be kept"),
        (IDS, uneven, "different numbers of tokens"),
        (FORK[::-1], lease.layers, "leased for"),
        (IDS, [KVCache() for _ in range(3)], "hold no token"),
    ]:
        with pytest.raises(ValueError, match=words):
            cache.insert("m", tokens, given)
    with pytest.raises(ValueError, match="tier is 'nobody'"):
        cache.insert("m", IDS, layers, "nobody")
    with pytest.raises(ValueError, match="tokens is empty"):
        cache.fetch("m", [])
    assert counted(cache) == before


@pytest.mark.parametrize("size", ["4GiB7", "", "-1", -1, True, "lots", None])
def test_a_size_that_is_none_is_refused_by_name(size):
    with pytest.raises(ValueError, match="memory_bytes is"):
        PromptCache(size)


@pytest.mark.parametrize(("size", "meant"), [(5, 5), ("500MB", 500_000_000), ("4 GiB", 1 << 32)])
def test_sizes(size, meant):
    assert PromptCache(size).stats()["memory"]["budget"] == meant


def test_fetch_says_why_not_more(cache, run):
    assert cache.fetch("m", IDS).why.reason == "cold"
    cache.insert("m", IDS, run(IDS)[1])
    assert cache.fetch("m", IDS).why.reason == "whole"
    why = cache.fetch("m", FORK).why
    assert (why.reason, why.position) == ("diverged", 40)
    assert "40" in str(why)
