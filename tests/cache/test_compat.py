"""mlx-lm's interface over our core: the same results where mlx-lm is right."""

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models import cache as mlx_lm
from mlx_lm.models.cache import KVCache, QuantizedKVCache
from plain_layers import ROW, held, put, rows

from llm_mlx_promptcache.cache.compat import CacheOrder, LRUPromptCache, PromptTrie

paths = st.lists(st.integers(0, 2), min_size=1, max_size=9)


@pytest.fixture
def cache():
    made = LRUPromptCache()
    yield made
    assert made.check() == []


# The same calls give the same results.


@given(st.lists(paths, max_size=8), paths, st.integers(1, 6))
@settings(deadline=None, max_examples=60)
def test_fetches_what_mlx_lm_fetches(stored, wanted, size):
    theirs, ours = mlx_lm.LRUPromptCache(size), LRUPromptCache(size)
    for path in stored:
        put(theirs, path)
        put(ours, path)
        assert len(ours) == len(theirs)
    assert {tier: s["n_sequences"] for tier, s in ours.stats_by_type().items()} == {
        tier: s["n_sequences"] for tier, s in theirs.stats_by_type().items()
    }
    layers, rest = theirs.fetch_nearest_cache("m", wanted)
    if not rest:  # D1
        layers, rest = [rows(wanted[:-1])] if len(wanted) > 1 else None, wanted[-1:]
    elif rest == wanted:  # layers cut down to no token at all are none
        layers = None
    own, own_rest = ours.fetch_nearest_cache("m", wanted)
    assert own_rest == rest
    assert held(own) == held(layers)
    assert ours.check() == []


@given(st.lists(st.tuples(paths, st.booleans()), max_size=10), st.integers(0, 4))
@settings(deadline=None, max_examples=40)
def test_holds_what_its_paths_need_and_no_more(calls, left):
    cache, leases = LRUPromptCache(4), []
    for path, fetched in calls:
        if fetched:
            leases.append(cache.fetch_nearest_cache("m", path)[0])
        else:
            put(cache, path)
        assert cache.check() == []
        assert sum(s["n_bytes"] for s in cache.stats_by_type().values()) == cache.nbytes
    cache.trim_to(n_sequences=left)
    ends = [tuple(n.path()) for n in cache._paths.nodes() if n.has_value]
    distinct = {path[:end] for path in ends for end in range(1, len(path) + 1)}
    assert len(ends) == len(cache) <= left
    assert cache.nbytes == len(distinct) * ROW


@given(st.lists(st.tuples(st.sampled_from(["push", "remove", "pop"]), paths, st.integers(0, 2))))
def test_cache_order_keeps_mlx_lms_rule(calls):
    tiers = ["assistant", "user", "system"]
    theirs, ours = mlx_lm.LRUPromptCache.CacheOrder(), CacheOrder()
    for name, path, tier in calls:
        if name == "pop":
            if len(theirs):
                assert ours.pop() == theirs.pop()
            continue
        for order in (theirs, ours):
            order.remove("m", path)
            if name == "push":
                order.push("m", path, tiers[tier])
        assert len(ours) == len(theirs)
    while len(theirs):
        assert ours.pop() == theirs.pop()
    with pytest.raises(IndexError, match="empty"):
        ours.pop()


@given(st.lists(paths, max_size=10), st.lists(st.integers(0, 2), max_size=9))
def test_prompt_trie_finds_what_mlx_lms_finds(stored, wanted):
    theirs, ours = mlx_lm.PromptTrie(), PromptTrie()
    for number, path in enumerate(stored):
        assert ours.add("m", path, number) == theirs.add("m", path, number)
    expected, found = theirs.search("m", wanted), ours.search("m", wanted)
    assert found.exact == expected.exact
    assert found.common_prefix == expected.common_prefix
    assert (found.longer and len(found.longer)) == (expected.longer and len(expected.longer))
    if found.shorter is None or len(found.shorter) > 1:  # D9
        assert found.shorter == expected.shorter
    if expected.exact:
        assert found.exact is wanted
        assert ours.get("m", wanted) == theirs.get("m", wanted)
        assert ours.pop_prefixes("m", wanted) == theirs.pop_prefixes("m", wanted)
        assert ours.pop("m", wanted) == theirs.pop("m", wanted)


def test_a_tier_that_is_none_is_refused_by_name(cache):
    with pytest.raises(ValueError, match="cache_type is 'nobody'"):
        CacheOrder().push("m", [1], "nobody")
    with pytest.raises(ValueError, match="cache_type is 'nobody'"):
        put(cache, [1], "nobody")


def test_a_path_stored_again_moves_to_its_new_tier(cache):
    for tier in ("system", "user", "assistant", "user"):
        put(cache, [1, 2, 3], tier)
        assert len(cache) == 1
        assert cache.stats_by_type()[tier] == {"n_sequences": 1, "n_bytes": 3 * ROW}


def test_models_are_told_apart_by_any_key(cache):
    key = ("path", None, "draft")
    cache.insert_cache(key, [1, 2], [rows([1, 2])])
    assert cache.fetch_nearest_cache(("path", None, None), [1, 2]) == (None, [1, 2])
    assert cache.fetch_nearest_cache(key, [1, 2, 3])[1] == [3]


def test_a_model_may_change_its_layers_for_long_prompts(cache):
    short, long = [1, 2, 3], [1, 2, 3, 4, 5]
    quantized = QuantizedKVCache(group_size=32, bits=8)
    block = mx.random.normal((1, 1, 5, 32))
    quantized.update_and_fetch(block, block)
    cache.insert_cache("m", long, [quantized])
    assert isinstance(cache.fetch_nearest_cache("m", [*long, 6])[0][0], QuantizedKVCache)
    put(cache, short)
    cache.trim_to(n_sequences=1)
    assert isinstance(cache.fetch_nearest_cache("m", [*short, 6])[0][0], KVCache)


def test_ids_of_images_are_kept_apart(cache):
    cat, dog = [1, -(2**59), -(2**59), 2], [1, -7, -7, 2]
    cache.insert_cache("m", cat, [rows(range(4))])
    assert cache.fetch_nearest_cache("m", [*cat, 3])[1] == [3]
    assert cache.fetch_nearest_cache("m", [*dog, 3])[1] == [*dog[1:], 3]
    with pytest.raises(ValueError, match="tokens must be integers"):
        cache.fetch_nearest_cache("m", [1, "cat"])


def test_an_empty_path_is_nothing(cache):
    cache.insert_cache("m", [], [KVCache()])
    assert len(cache) == 0
    assert cache.fetch_nearest_cache("m", []) == (None, [])


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([object()], "class object can't be kept"),
        ([KVCache()], "takes|hold no token"),
        ([rows([1, 2]), rows([1])], "different numbers of tokens"),
        ([], "nothing to keep"),
    ],
)
def test_layers_that_cannot_be_kept_are_told_once_and_left_out(cache, caplog, layers, words):
    put(cache, [5])
    for _ in range(2):
        cache.insert_cache("m", [1, 2], layers)
    (record,) = caplog.records
    assert words.split("|")[-1] in record.getMessage()
    assert (len(cache), cache.nbytes) == (1, ROW)
