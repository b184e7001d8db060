"""The one planner of chunks: sizes in time, remembered, and constant while a prefill runs."""

import pytest
from readers import planner_of, request, together

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.engine import chunks
from llm_mlx_promptcache.engine.chunks import (
    Beside,
    ChunkPlanner,
    ChunkSizes,
    checkpoints,
    chunk_end,
)
from llm_mlx_promptcache.models.facts import ModelFacts

IDENTITY = "a" * 64
SIZES = ChunkSizes(0.5, 0.1, 16, 8, unknown=256, most=2048)


@pytest.fixture
def facts(tmp_path):
    """`facts()` -> those of a new process, from the same file."""
    return lambda: ModelFacts(tmp_path / "facts.json")


@pytest.fixture
def planner_with(facts):
    """`planner_with(speeds)` -> a planner that has seen a chunk of each speed, by its start."""

    def make(speeds):
        planner = ChunkPlanner(IDENTITY, facts(), SIZES)
        planner.observe(0, 2048, 100)  # the first one tells nothing
        for start, speed in speeds.items():
            planner.observe(start, 2048, 2048 / speed)
        return planner

    return make


@pytest.mark.parametrize(
    ("speed", "whole", "shared"),
    [(10, 16, 8), (100, 32, 8), (400, 128, 32), (1000, 256, 64), (9000, 2048, 512)],
)
def test_a_chunk_is_the_power_of_two_that_its_time_allows(planner_with, speed, whole, shared):
    plan = planner_with({0: speed}).begin()
    assert (plan.size(0), plan.size(0, Beside.ANSWERS)) == (whole, shared)


def test_until_a_speed_is_known_a_size_is_given(facts):
    planner = ChunkPlanner(IDENTITY, facts(), SIZES)
    assert (planner.size(0), planner.size(9000), planner.size(0, Beside.ANSWERS)) == (256, 256, 32)
    assert planner.speed(0, 1000) is None
    planner.observe(0, 256, 0.5)  # it also read the weights: no speed, and no reason to be smaller
    assert planner.size(0) == 256
    planner.observe(0, 100, 8)  # a rest, of which the pass is most
    assert planner.size(0) == 256
    assert planner.speed(0, 1000) is None
    planner.observe(0, 256, 0.256)
    assert planner.size(0) == 256
    assert planner.speed(0, 1000) == pytest.approx(1000)


def prefilled(facts, seconds, length):
    """The chunks of a GPU's first prefill: tokens and seconds, `seconds(start)` a token."""
    planner = ChunkPlanner("", facts(), chunks._GPU)
    plan, start, ran = planner.begin(), 0, []
    while start < length:
        count = min(plan.size(start), length - start)
        took = count * seconds(start + count / 2)
        planner.observe(start, count, took)
        ran.append((count, took))
        start += count
    return ran


def test_on_a_gpu_a_chunk_is_about_a_second(facts):
    # An M-series Max and an 8B model, attention as dear as the rest at 16,000 tokens.
    ran = prefilled(facts, lambda at: (1 + at / 16_000) / 800, 64_000)
    assert [count for count, _ in ran[:4]] == [256, 256, 512, 512]
    assert max(took for _, took in ran) < 2
    assert min(count for count, _ in ran[:-1]) >= 128
    # Smaller where many stand before it, once it was seen.
    assert ran[-2][0] < max(count for count, _ in ran)
    fast = prefilled(facts, lambda at: 1 / 10_000, 20_000)
    assert max(count for count, _ in fast) == 2048


def test_a_machine_that_is_slow_waits_for_one_chunk_and_no_second_like_it(facts):
    """At ten tokens a second a chunk of 2,048 took three minutes, and Ctrl-C waited for it."""
    ran = prefilled(facts, lambda at: 0.1, 1000)
    assert [count for count, _ in ran[:3]] == [256, 64, 64]
    assert max(took for _, took in ran[1:]) < 7


def test_sizes_are_remembered_for_other_processes(planner_with, facts):
    known = planner_with({0: 1000, 1024: 600, 4096: 130})
    other = ChunkPlanner(IDENTITY, facts(), SIZES)
    for start in (0, 1023, 1024, 2048, 5000, 9000, 200_000):
        assert other.size(start) == known.size(start)
        assert other.size(start, Beside.ANSWERS) == known.size(start, Beside.ANSWERS)
    assert ChunkPlanner("b" * 64, facts(), SIZES).size(9000) == SIZES.unknown


def test_sizes_do_not_grow_with_the_place_nor_fall_without_end(planner_with):
    planner = planner_with({0: 1000, 1024: 600})
    sizes = [planner.size(start) for start in range(0, 300_000, 512)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 256
    assert sizes[-1] == SIZES.least


def test_a_prefill_keeps_its_sizes_whatever_is_learnt_meanwhile(planner_with):
    planner = planner_with({0: 1000})
    plan = planner.begin()
    before = plan.size(0), plan.size(0, Beside.ANSWERS)
    for _ in range(9):
        planner.observe(0, 256, 256 / 50)
    assert planner.size(0) == 16
    assert (plan.size(0), plan.size(512), plan.size(0, Beside.ANSWERS)) == (before[0], *before)
    assert planner.begin().size(0) == 16


def test_one_slow_chunk_changes_nothing_and_three_do(planner_with, facts):
    planner = planner_with({0: 1000})
    for seconds in (0.3, 9, 0.3, 0.3, 0.4, 0.3):
        planner.observe(0, 256, seconds)
    assert planner.size(0) == 256
    for seconds in (2, 2, 0.3):
        planner.observe(0, 256, seconds)
    assert planner.size(0) == 64
    assert ChunkPlanner(IDENTITY, facts(), SIZES).size(0) == 64


@pytest.mark.parametrize(
    "found",
    [
        *(None, 7, [], "0", {"0": 1}, {"0": True}, {"0": -1.0}, {"0": 0.0}, {"0": 1e9}),
        *({"-1": 0.1}, {"99": 0.1}, {"0": 0.1, "x": 0.1}, {"0": "0.1"}, {"0": None}),
    ],
)
def test_what_is_no_speed_in_the_file_is_as_if_absent(facts, found):
    facts().put(IDENTITY, "prefill", found)
    assert ChunkPlanner(IDENTITY, facts(), SIZES).size(0) == SIZES.unknown


def test_a_speed_is_that_of_all_places_on_the_way(planner_with):
    planner = planner_with({0: 1000, 1024: 500})
    assert planner.speed(0, 1024) == pytest.approx(1000)
    assert planner.speed(1024, 2048) == pytest.approx(500)
    assert planner.speed(0, 2048) == pytest.approx(2048 / (1.024 + 2.048))
    assert planner.speed(0, 1 << 22) < planner.speed(0, 1 << 16) < 500
    assert planner.speed(5, 5) is None


@pytest.mark.parametrize("length", [0, 1, 255, 256, 257, 10_000])
def test_chunks_of_a_prefill_that_nobody_waits_for_are_all_of_it(planner_with, length):
    cut = list(planner_with({0: 1000, 1024: 100}).alone(length))
    assert [at for start, end in cut for at in range(start, end)] == list(range(length))


@pytest.mark.parametrize("known", [True, False])
def test_what_the_disk_gives_slower_than_prefill_is_prefilled(scheduler_of, tmp_path, known):
    long = request("words " * 60)

    def process(planner=None):
        cache = PromptCache("100MB", DiskStore(tmp_path))
        cache._lookup.bandwidth.measured(10 << 20, 1000.0)
        [asked] = together(scheduler_of(cache, planner=planner), long)
        cache.flush()
        return asked.last

    first = process()
    planner = planner_of(256)
    for _ in range(2 if known else 0):
        planner.observe(0, 256, 256 / 1e6)
    again = process(planner)
    assert again.ids == first.ids
    assert (again.usage.cached == 0) is known


def test_chunks_end_where_something_must_be_kept():
    assert chunk_end(0, 900, {100, 500}, 256) == 100
    assert chunk_end(100, 900, {100, 500}, 256) == 356
    assert chunk_end(800, 900, {100, 500, 1000}, 256) == 900
    assert list(checkpoints(9000)) == [4096, 8192]
