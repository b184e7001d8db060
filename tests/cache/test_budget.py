"""Budgets, pins, tiers, thinning and reasons, on tiny models whose bytes are counted exactly."""

import random
import runpy
from pathlib import Path

import families
import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.insertion import Rows
from llm_mlx_promptcache.cache.prompt_cache import PromptCache

MEMORY = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "memory.py"))

ROW = 3 * 2 * 2 * 8 * 4  # layers x keys and values x heads x width x bytes: conftest's model


def path(seed, length=20):
    return random.Random(seed).choices(range(100), k=length)


def held(cache):
    return cache.stats()["memory"]


@pytest.fixture
def keep(run):
    """`keep(cache, tokens, tier="assistant")` runs the tokens and inserts what comes of it."""

    def insert(cache, tokens, tier="assistant"):
        return cache.insert("m", tokens, run(tokens)[1], tier)

    return insert


def test_law_10_what_is_too_large_is_kept_as_far_as_it_fits_and_evicts_nothing_more(keep):
    cache = PromptCache(ROW * 50)
    assert keep(cache, path(1)) == 20
    assert keep(cache, path(2, 80)) == 50
    assert held(cache)["bytes"] == ROW * 50
    assert cache.fetch("m", path(2, 80)).cached == 50
    assert cache.check() == []


def test_law_10_a_budget_of_nothing_keeps_nothing_and_says_so(keep):
    cache = PromptCache(0)
    assert keep(cache, path(1)) == 0
    assert held(cache)["spans"] == 0
    assert cache.fetch("m", path(1)).layers is None


def test_a_number_of_spans_can_be_the_budget(keep):
    cache = PromptCache("1GB", spans=3)
    for seed in range(6):
        keep(cache, path(seed))
        assert held(cache)["spans"] <= 3
    assert cache.fetch("m", [*path(5), 1]).cached == 20


@pytest.mark.parametrize("bad", [-1, 1.5, True, "3"])
def test_a_number_of_spans_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="spans is"):
        PromptCache("1GB", spans=bad)


def test_what_is_pinned_stays_until_it_is_let_go(keep):
    cache = PromptCache(ROW * 60)
    keep(cache, path(0, 25))
    cache.pin("m", path(0, 25)[:15])
    cache.pin("m", path(0, 25)[:15])
    for seed in range(1, 10):
        keep(cache, path(seed, 25))
    assert cache.fetch("m", path(0, 25)).cached == 15
    cache.trim_to(memory_bytes=0)
    assert held(cache)["tokens"] == 15
    cache.unpin("m", path(0, 25)[:15])
    cache.trim_to(memory_bytes=0)
    assert held(cache)["spans"] == 0
    assert cache.check() == []


def test_pinning_what_is_not_there_is_refused(keep):
    cache = PromptCache("1GB")
    keep(cache, path(1))
    with pytest.raises(ValueError, match="only 20 of these 21 tokens"):
        cache.pin("m", [*path(1), 1])
    with pytest.raises(ValueError, match="only 0 of these"):
        cache.pin("other", path(1))
    with pytest.raises(ValueError, match="nothing is pinned"):
        cache.unpin("m", path(1))


def test_a_leased_span_stays_until_its_lease_ends(keep):
    cache = PromptCache("1GB")
    keep(cache, path(1))
    lease = cache.fetch("m", [*path(1), 1])
    cache.trim_to(memory_bytes=0)
    assert held(cache)["tokens"] == 20
    del lease
    cache.trim_to(memory_bytes=0)
    assert held(cache)["tokens"] == 0


def test_trim_to_takes_bytes_sizes_and_spans(keep):
    cache = PromptCache("1GB")
    for seed in range(4):
        keep(cache, path(seed))
    cache.trim_to(spans=3)
    assert held(cache)["spans"] == 3
    cache.trim_to(memory_bytes=f"{ROW * 40}B")
    assert held(cache)["bytes"] == ROW * 40
    with pytest.raises(ValueError, match="memory_bytes is '4GiB7'"):
        cache.trim_to(memory_bytes="4GiB7")


def test_discard_takes_a_path_and_leaves_what_others_share(keep):
    cache = PromptCache("1GB")
    shared = path(9, 10)
    for seed in (1, 2):
        keep(cache, shared + path(seed, 5))
    assert cache.discard("m", shared + path(1, 5)) == ROW * 5
    assert cache.fetch("m", [*shared, *path(2, 5), 1]).cached == 15
    assert cache.discard("m", shared + path(2, 5)) > 0
    assert cache.check() == []


def test_an_applications_own_tiers(keep):
    cache = PromptCache(ROW * 45, tiers=("draft", "kept", "golden"))
    keep(cache, path(1), "golden")
    for seed in range(2, 9):
        keep(cache, path(seed), "draft")
    assert cache.fetch("m", [*path(1), 1]).cached == 20
    with pytest.raises(ValueError, match="assistant"):
        keep(cache, path(1), "assistant")


@pytest.mark.parametrize("policy", ["default", "lru", "mlx-lm"])
def test_every_policy_keeps_to_the_budget(keep, policy):
    cache = PromptCache(ROW * 50, policy=policy)
    shared = path(99, 10)
    for seed in range(30):
        keep(cache, shared + path(seed % 12, 12), ("assistant", "user", "system")[seed % 3])
        assert held(cache)["bytes"] <= ROW * 50
        assert cache.check() == []
    assert sum(cache.stats()["evicted"].values()) > 10


def test_rows_that_nobody_else_needs_move_into_the_lease_and_are_returned(keep, run, greedy):
    cache = PromptCache("1GB")
    tokens = path(1, 40)
    keep(cache, tokens[:25], "user")
    keep(cache, tokens)
    assert cache.in_memory("m", [*tokens, 3]) == 40
    lease = cache.fetch("m", [*tokens, 3], rows=Rows.GIVE)
    assert lease.cached == 40
    assert held(cache)["bytes"] == cache.in_memory("m", tokens) == 0
    layers = run([3], lease.layers)[1]
    del lease
    cache.insert("m", [*tokens, 3], layers, rows=Rows.RETURN)
    assert layers == []
    assert held(cache)["bytes"] == ROW * 41
    assert cache.check() == []
    again = cache.fetch("m", [*tokens, 3, 4])
    assert greedy([4], again.layers) == greedy([*tokens, 3, 4])


def test_law_10_rows_that_return_count_before_what_is_new(keep, run):
    cache = PromptCache(ROW * 60)
    keep(cache, path(2, 15))
    keep(cache, path(1, 40))
    more = path(3, 30)
    lease = cache.fetch("m", [*path(1, 40), *more], rows=Rows.GIVE)
    layers = run(more, lease.layers)[1]
    del lease
    assert cache.insert("m", [*path(1, 40), *more], layers, rows=Rows.RETURN) == 60
    assert held(cache)["bytes"] <= ROW * 60
    assert cache.fetch("m", [*path(1, 40), *more]).cached == 60
    assert cache.check() == []


def test_rows_that_others_share_are_copied(keep):
    cache = PromptCache("1GB")
    shared = path(9, 10)
    for seed in (1, 2):
        keep(cache, shared + path(seed, 5))
    cache.fetch("m", [*shared, *path(1, 5), 1], rows=Rows.GIVE)
    assert held(cache)["bytes"] == ROW * (10 + 5)
    assert cache.fetch("m", [*shared, *path(2, 5), 1]).cached == 15


def test_a_lease_that_never_returns_leaves_a_miss_and_no_trace(keep):
    cache = PromptCache("1GB")
    keep(cache, path(1))
    lease = cache.fetch("m", [*path(1), 1], rows=Rows.GIVE)
    missed = cache.fetch("m", [*path(1), 1])
    assert (missed.layers, missed.why.reason) == (None, "lent")
    del lease
    assert cache.fetch("m", [*path(1), 1]).layers is None
    assert held(cache)["spans"] == 0
    assert cache.check() == []


def test_a_lease_that_never_returns_loses_nothing_that_is_on_the_disk(keep, run, tmp_path):
    cache = PromptCache("1GB", DiskStore(tmp_path))
    keep(cache, path(1))
    cache.flush()
    del_me = cache.fetch("m", [*path(1), 1], rows=Rows.GIVE)
    assert del_me.cached == 20
    del del_me
    assert cache.fetch("m", [*path(1), 1]).cached == 20


def test_reasons(keep, run):
    cache = PromptCache(ROW * 45)
    tokens = path(1)
    assert cache.fetch("m", tokens).why.reason == "cold"
    keep(cache, tokens)
    assert cache.explain("m", tokens).reason == "whole"
    other = [*tokens[:12], 100 + 1, 5]
    why = cache.fetch("m", other).why
    assert (why.reason, why.position, why.wanted, why.stored) == (
        "diverged",
        12,
        101,
        (tokens[12],),
    )
    assert "101" not in str(why)
    assert cache.fetch("elsewhere", tokens).why.reason == "cold"
    assert cache.explain("elsewhere", tokens) == ("namespace", 20, "", None, ())
    keep(cache, path(2))
    keep(cache, path(3))
    assert cache.fetch("m", tokens).why.reason == "evicted"


def test_stats_count_what_happened(keep):
    cache = PromptCache("1GB")
    keep(cache, path(1), "system")
    cache.fetch("m", [*path(1), 1])
    cache.fetch("m", path(2))
    stats = cache.stats()
    assert (stats["hits"], stats["misses"]) == (1, 1)
    assert (stats["tokens_reused"], stats["tokens_prefilled"]) == (20, 21)
    assert stats["misses_by_reason"] == {"cold": 1}
    assert stats["memory"]["tiers"]["system"] == {"spans": 1, "tokens": 20, "bytes": ROW * 20}


def test_thirty_turns_of_a_model_of_state_hold_a_small_multiple_of_one():
    model = families.BY_NAME["mamba2"].build()
    cache, layers, tokens = PromptCache("1GB"), make_prompt_cache(model), []
    one = None
    for turn in range(30):
        for tier, length in (("user", 12), ("assistant", 7)):
            tokens += path(turn * 2 + length, length)
            mx.eval(model(mx.array([tokens[-length:]]), cache=layers))
            cache.insert("m", tokens, layers, tier)
            one = one or held(cache)["bytes"]
    assert held(cache)["bytes"] <= 12 * one
    assert cache.fetch("m", [*tokens, 1]).cached == len(tokens)
    assert cache.check() == []


def test_one_turn_on_the_longest_conversation_peaks_near_once_its_size():
    rows = MEMORY["long_turn"](8, 6000)
    peaks = {row["cache"]: row["peak"] for row in rows}
    pooled = {row["cache"]: row["with_pool"] for row in rows}
    assert peaks["ours"] <= 1.15 < peaks["mlx-lm"]
    assert pooled["ours"] <= 1.25 < pooled["mlx-lm"]


def test_a_shared_prefix_is_held_once_however_many_go_on_from_it():
    held = {row["cache"]: row["ratio"] for row in MEMORY["shared_prefix"](20, 1000, 50)}
    assert held["ours"] <= 1.05 < held["mlx-lm"]


def test_law_10_of_state_the_newest_checkpoint_stays_where_more_do_not_fit():
    model = families.BY_NAME["mamba2"].build()
    layers, tokens = make_prompt_cache(model), path(1, 10)
    mx.eval(model(mx.array([tokens]), cache=layers))
    one = PromptCache("1GB")
    one.insert("m", tokens, layers)
    size = held(one)["bytes"]
    cache = PromptCache(size * 3 // 2)
    for step in range(4):
        more = path(step + 2, 10)
        tokens += more
        mx.eval(model(mx.array([more]), cache=layers))
        assert cache.insert("m", tokens, layers, "user") == len(tokens)
        assert held(cache)["bytes"] == size
        assert cache.fetch("m", [*tokens, 1]).cached == len(tokens)
    nothing = PromptCache(size // 2)
    assert nothing.insert("m", tokens, layers) == 0
    assert cache.check() == nothing.check() == []
