"""Law 1 over mlx-lm's families: a warm answer equals the cold one, or it is a miss."""

import dataclasses
import functools
import shutil

import families
import mlx.core as mx
import pytest
import trials

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.layers.layout import NotCached, layout_of
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.cache.store import NullStore

NS = trials.NAMESPACE
PATH = trials.PATH
KEPT = [family.name for family in families.FAMILIES if family.name != "deepseek_v41"]
# Every kind of layer, alone and mixed; the others are held to fewer points.
# fmt: off
THOROUGH = [
    "llama", "qwen3", "glm4", "deepseek_v3",
    "gemma3_text", "gemma4_text", "gpt_oss", "ministral3", "cohere2", "olmo3", "exaone4",
    "mamba2", "jamba", "qwen3_next", "qwen3_5", "falcon_h1",
    "lfm2", "nemotron_h", "granitemoehybrid", "recurrent_gemma", "rwkv7", "kimi_linear",
    "deepseek_v32", "llama4", "longcat_flash", "baichuan_m1",
]
# fmt: on
FEW = (1, 8, 13, 22, 45, 52)  # a token; a window's edge; inside a long span; ends of spans
SOME = (7, 9, 12, 14, 20, 29, 30, 31, 38, 59, 60)


@functools.cache
def trial_of(name):
    return trials.Trial(families.BY_NAME[name])


@pytest.fixture
def trial(name):
    return trial_of(name)


@pytest.fixture
def cache(store):
    """A cache whose stored spans never change, and are never larger than they report."""
    made = PromptCache("100MB", store)
    pooled = mx.set_cache_limit(0)  # a buffer that MLX uses again may be twice what is asked for
    mx.clear_cache()
    yield made
    try:
        assert made.check() == []
        assert not isinstance(store, DiskStore) or store.check() == []
        if made.stats()["memory"]["bytes"]:
            assert trials.excess(made) < 1.25
    finally:
        mx.set_cache_limit(pooled)


@pytest.mark.parametrize("store", [NullStore()], ids=["memory"])
@pytest.mark.parametrize("name", KEPT)
def test_law_1_every_family(cache, trial):
    trial.keep(cache, PATH)
    before = trials.stored(cache)
    trials.points_hold(trial, cache, FEW)
    assert trials.unchanged(before)


@pytest.mark.parametrize("name", ["gemma3_text", "gpt_oss"])
def test_law_1_windows_out_of_a_pack_are_those_of_the_files_bit_for_bit(trial, tmp_path):
    store = DiskStore(tmp_path / "files")
    cache = PromptCache("100MB", store)
    trial.keep(cache, PATH, range(6, len(PATH), 6))  # spans that fit into their windows
    cache.flush()
    store.close()
    packed = DiskStore(shutil.copytree(tmp_path / "files", tmp_path / "packed"))
    *_, done = packed.compact()
    assert (done.packs, len(list(packed.spans_folder.iterdir()))) == (1, 1)
    for point in (*FEW, len(PATH)):
        found = PromptCache("100MB", packed).fetch(NS, [*PATH[:point], 1])
        assert found.cached == point  # anywhere: no row is left out
        if point % 6 == 0:
            files = PromptCache("100MB", DiskStore(tmp_path / "files")).fetch(
                NS, [*PATH[:point], 1]
            )
            pairs = zip(found.layers, files.layers, strict=True)
            assert all(mx.array_equal(a.keys, b.keys).item() for a, b in pairs)
    trials.points_hold(trial, PromptCache("100MB", packed), FEW)
    assert packed.check() == []


@pytest.mark.parametrize("name", THOROUGH)
def test_law_1_at_many_points_after_a_restart(trial, tmp_path):
    store = DiskStore(tmp_path)
    first = PromptCache("100MB", store)
    trial.keep(first, PATH)
    first.flush()
    cache = PromptCache("100MB", store)
    trials.points_hold(trial, cache, SOME)
    assert cache.check() + store.check() == []


@pytest.mark.soak
@pytest.mark.parametrize("name", KEPT)
def test_law_1_at_every_point_of_both_stores(trial, tmp_path, soak_share):
    store = DiskStore(tmp_path)
    cache = PromptCache("100MB", store)
    trial.keep(cache, PATH)
    step = round(1 / soak_share)
    points = range(1 + len(trial.family.name) % step, 61, step)  # not the same ones of all models
    before = trials.stored(cache)
    trials.points_hold(trial, cache, points, 16)
    assert trials.unchanged(before)
    cache.flush()
    trials.points_hold(trial, PromptCache("100MB", store), points, 16)
    assert cache.check() + store.check() == []


def turn(trial, cache, prompt, count=10):
    """One request, as an engine serves it; the whole path with its answer."""
    trial.keep(cache, prompt, [*trials.STOPS[:2], len(prompt) - 1])
    lease = cache.fetch(NS, prompt, headroom=count)
    assert lease.cached == len(prompt) - 1
    answer, layers = trial.check(lease, prompt, count)
    cache.insert(NS, [*prompt, *answer], layers)
    return [*prompt, *answer]


@pytest.mark.parametrize("store", [NullStore()], ids=["memory"])
@pytest.mark.parametrize("name", THOROUGH)
def test_law_1_through_a_conversation(cache, trial):
    whole = turn(trial, cache, PATH[:45])
    before = trials.stored(cache)
    extended = turn(trial, cache, [*whole, *trials.words(31, 7)])
    turn(trial, cache, extended)
    regenerated = [*PATH[:45], (whole[45] + 1) % families.VOCAB_SIZE, *trials.words(32, 3)]
    turn(trial, cache, regenerated)
    turn(trial, cache, PATH[:22])
    for seed in (33, 34, 35):
        turn(trial, cache, [*PATH[:37], *trials.words(seed, 6)])
    for prompt in ([*PATH[:45], 1, 2], [*whole, 3], [*extended, 4], [*regenerated, 5]):
        lease = cache.fetch(NS, prompt)
        assert lease.cached >= 30
        trial.check(lease, prompt, 8)
    assert trials.unchanged(before)


@pytest.mark.parametrize("name", THOROUGH)
def test_law_1_while_half_of_it_is_evicted(trial, store):
    full = PromptCache("100MB")
    trial.keep(full, PATH)
    budget = int(full.stats()["memory"]["bytes"] * 0.6)
    cache = PromptCache(budget, store)
    forked = [*PATH[:30], *trials.words(41, 20)]
    for path in (PATH, forked):
        trial.keep(cache, path)
        assert cache.stats()["memory"]["bytes"] <= budget
    prompts = [([*PATH, 1], 0), ([*forked, 2], 30), ([*PATH[:38], 3], 0)]
    for written in (0, 13 * isinstance(store, DiskStore)):
        for prompt, least in prompts:
            lease = cache.fetch(NS, prompt)
            # What came last is there; once it is written, of the rest at least its first message.
            assert lease.cached >= max(least, written)
            trial.check(lease, prompt, 8)
        cache.flush()
    assert cache.check() == []


@pytest.mark.parametrize("store", [NullStore()], ids=["memory"])
@pytest.mark.parametrize("name", THOROUGH)
def test_law_1_for_leases_that_run_side_by_side(cache, trial):
    trial.keep(cache, PATH)
    before = trials.stored(cache)
    prompts = [[*PATH[:45], *trials.words(seed, 5)] for seed in (51, 52, 53)]
    leases = [cache.fetch(NS, prompt) for prompt in prompts]
    warm = [None] * 3
    for step in range(45, 50):
        for index, (prompt, lease) in enumerate(zip(prompts, leases, strict=True)):
            first = lease.cached if step == 45 else step
            warm[index] = trial.run(prompt[first : step + 1], lease.layers)[-1]
    for prompt, logits in zip(prompts, warm, strict=True):
        cold = trial.cold(prompt, [50])[-1]
        assert mx.abs(logits - cold).max().item() < 1e-4
    assert trials.unchanged(before)


@pytest.mark.parametrize("bits", [8, 4])
def test_law_1_quantised_rows(cache, bits):
    wide = dataclasses.replace(families.BY_NAME["llama"], own={"head_dim": 32})
    trial = trials.Trial(wide, quantized=bits)
    trial.keep(cache, PATH)
    before = trials.stored(cache)
    trials.points_hold(trial, cache, FEW)
    # How far buckets flip depends on the BLAS, down to not at all; that they are there does not.
    assert {kind.name for kind in layout_of(trial.layers())} == {"quantized_rows"}
    same = trials.Trial(dataclasses.replace(wide, chunked="quantised"), quantized=bits)
    trials.points_hold(same, cache, trials.STOPS)  # inside a span, the rows' chunks are others
    assert same.worst == 0
    assert trials.unchanged(before)


@pytest.mark.parametrize("at", [5, 15, 16, 17, 40])
def test_law_1_a_window_that_keeps_its_first_rows_is_cached_up_to_its_wrap(cache, at):
    trial = trials.Trial(families.BY_NAME["qwen3"], max_kv_size=16)
    layers = trial.layers()
    trial.run(PATH[:at], layers)
    cache.insert(NS, PATH[:at], layers)
    for point in (3, 14, 15, 16, 17, 40):
        prompt = [*PATH[:point], *trials.words(60 + point, 5)]
        lease = cache.fetch(NS, prompt)
        assert lease.cached == (min(at, point, 15) if at <= 16 else 0)
        cold = trial.cold(prompt, [len(prompt)])
        warm = trial.run(prompt[lease.cached :], lease.layers or trial.layers())
        assert mx.abs(warm[-1] - cold[-1]).max().item() < 1e-4


def test_a_class_whose_state_does_not_round_trip_is_not_cached():
    trial = trial_of("deepseek_v41")
    layers = trial.layers()
    trial.run(PATH, layers)
    cache = PromptCache("100MB")
    with pytest.raises(NotCached, match="class LayerCache can't be kept: its state can't be set"):
        cache.insert(NS, PATH, layers)
    assert cache.stats()["memory"]["spans"] == 0


@pytest.mark.parametrize("name", THOROUGH)
def test_law_1_checkpoints_taken_inside_what_is_stored_outlive_the_process(trial, tmp_path):
    """A path stored in one go is resumed after a restart wherever memory could resume it."""
    store = DiskStore(tmp_path)
    first = PromptCache("100MB", store)
    layers = trial.layers()
    trial.run(PATH, layers)
    first.insert(NS, PATH, layers)  # no checkpoint but at the end
    first.flush()
    for stop in (13, 30):
        trial.keep(first, [*PATH[:stop], *trials.words(70 + stop, 6)], [stop])
        first.flush()
    kept = store.stats()["bytes"]
    assert store.stats()["written"] == kept
    points = (13, 14, 30, 38, 60)
    prompts = [[*PATH[:point], *trials.words(80 + point, 5)] for point in points]
    reached = [first.fetch(NS, prompt).cached for prompt in prompts]
    taken = [max(stop for stop in (13, 30, 60) if stop <= point) for point in points]
    least = points if trial.anywhere() else taken
    assert all(cached >= floor for cached, floor in zip(reached, least, strict=True))
    second = PromptCache("100MB", DiskStore(tmp_path))
    for prompt, cached in zip(prompts, reached, strict=True):
        lease = second.fetch(NS, prompt)
        assert lease.cached >= cached
        trial.check(lease, prompt, 8)
    assert second.check() + store.check() == []
