"""A model beside itself: what the self-test finds of right ones, and of faults made on purpose."""

import dataclasses
from itertools import count

import families
import mlx.core as mx
import pytest
from mlx_lm.models.cache import BatchKVCache, KVCache

from llm_mlx_promptcache.cache.disk import restore, store
from llm_mlx_promptcache.cache.layers.kinds import KVRows
from llm_mlx_promptcache.commands.doctor_diagnosis import Health
from llm_mlx_promptcache.commands.doctor_model import diagnoses
from llm_mlx_promptcache.engine.measurements import (
    BatchBesideAlone,
    NotFound,
    NotInTime,
    NotKept,
    RestoreBesideMemory,
    Speeds,
    WarmBesideCold,
)
from llm_mlx_promptcache.engine.nearness import most_rounding
from llm_mlx_promptcache.engine.self_test import RESTORED, TOGETHER, WARM, SelfTest
from llm_mlx_promptcache.models.layers import coarsest_dtype
from llm_mlx_promptcache.models.loading import load_model

ALL = [Speeds, WarmBesideCold, RestoreBesideMemory, BatchBesideAlone]


@pytest.fixture(scope="module")
def loaded_as(tiny_llama):
    """`loaded_as(kind, dtype)`: a tiny model of a kind, over the tiny tokenizer."""
    base = load_model(str(tiny_llama(context=256)))

    def make(kind, dtype=mx.float32):
        model = families.BY_NAME[kind].with_words(base.config["vocab_size"]).build()
        model.set_dtype(dtype)
        return dataclasses.replace(base, model=model)

    return make


@pytest.fixture
def measured(tmp_path):
    """`measured(loaded)`: all that its self-test says, by the class of what it measured."""

    def measure(loaded, clock=lambda: 0.0):
        test = SelfTest(loaded, tmp_path / "cache", float("inf"), clock)
        found = list(test.measurements())
        test.close()
        return {type(one): one for one in found}

    return measure


DTYPES = pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])


@DTYPES
@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "mamba2"])
def test_law_1_the_same_chunks_give_the_same_bits(kind, dtype, loaded_as, measured):
    """Rows, windows and state, in the model's own dtype: from memory, from the disk, in a batch."""
    found = measured(loaded_as(kind, dtype))
    assert list(found) == ALL
    speeds, warm, restored, together = found.values()
    assert speeds.dtype == str(dtype).removeprefix("mlx.core.")
    assert speeds.prefill > 0 < speeds.decode
    assert speeds.finite
    assert (speeds.prompt, warm.cached) == (warm.prompt, warm.prompt * 3 // 4) == (128, 96)
    assert warm.same_chunks.same_bits
    assert warm.same_chunks.same_tokens
    assert warm.again is None
    assert warm.one_go.logits <= warm.most
    # Far from the bound that nothing but a wrong model passes.
    assert 8 * max(warm.one_go.logits, warm.other_chunks.logits) < warm.bound
    assert (restored.tokens, restored.same_rows) == (96, True)
    assert restored.nbytes > 0
    assert restored.apart.same_bits
    assert (together.rows, together.why) == (3, "")
    assert together.apart.logits <= together.most


def test_other_chunks_are_judged_by_the_model_s_own_rounding(loaded_as, measured, monkeypatch):
    """As on a GPU, what a chunk leaves depends on its size: no cache had a part in that."""
    update = KVCache.update_and_fetch

    def rounded(self, keys, values):
        return update(self, keys + 1e-4 * keys.shape[-2], values)

    loaded = loaded_as("llama")
    monkeypatch.setattr(KVCache, "update_and_fetch", rounded)
    warm = measured(loaded)[WarmBesideCold]
    assert warm.same_chunks.same_bits
    assert not warm.one_go.same_bits
    assert warm.most == pytest.approx(4 * warm.other_chunks.logits)
    assert 0 < warm.one_go.logits < warm.most


@pytest.mark.parametrize(
    ("dtype", "share"), [(mx.float32, 0.05), (mx.bfloat16, 1.0)], ids=["float32", "bfloat16"]
)
def test_a_model_whose_answers_depend_on_where_prompts_are_cut_is_seen(
    dtype, share, loaded_as, measured, monkeypatch
):
    """Broken on purpose: of the rows before a chunk its queries see less than of their own chunk's.

    The cache has no part in it, and the same chunks still give the same bits.
    """
    update = KVCache.update_and_fetch

    def forgetful(self, keys, values):
        known = self.offset
        keys, values = update(self, keys, values)
        if values.shape[-2] > known + 1:  # a chunk, behind whatever was there
            before, now = values[..., :known, :], values[..., known:, :]
            values = mx.concatenate([before * (1 - share), now], axis=-2)
        return keys, values

    loaded = loaded_as("llama", dtype)
    monkeypatch.setattr(KVCache, "update_and_fetch", forgetful)
    warm = measured(loaded)[WarmBesideCold]
    assert warm.same_chunks.same_bits
    assert warm.other_chunks.logits > warm.bound
    line = list(diagnoses(warm))[1]
    assert line.health is Health.WRONG
    assert "its code in mlx-lm" in line.todo


def test_mlx_lm_s_own_model_of_that_kind_is_seen(loaded_as, measured):
    """Its windows see a row more within a chunk than between chunks (docs/models.md)."""
    warm = measured(loaded_as("plamo3"))[WarmBesideCold]
    assert warm.same_chunks.same_bits
    assert warm.other_chunks.logits > warm.bound


def test_the_bound_follows_from_the_coarsest_dtype(loaded_as):
    model = loaded_as("llama", mx.bfloat16).model
    assert coarsest_dtype(model) == mx.bfloat16
    model.update({"lm_head": {"weight": model.lm_head.weight.astype(mx.float32)}})
    assert coarsest_dtype(model) == mx.bfloat16
    logits = mx.array([[1.0, -8.0, float("-inf")]])
    bounds = [most_rounding(logits, kind) for kind in (mx.float32, mx.float16, mx.bfloat16)]
    fine = 256 * 2.0**-23 if mx.default_device().type == mx.DeviceType.cpu else 0.25
    assert bounds == [8 * fine, 8 * 0.25, 8 * 0.25]


def nudged(values):
    """A little more than these, so that no test for exact equality passes."""
    return values + mx.array(0.01, values.dtype)


def test_rows_from_memory_that_differ_are_seen(loaded_as, measured, monkeypatch):
    join = KVRows.join

    def joined(kind, views, count, headroom):
        layer = join(kind, views, count, headroom)
        layer.keys = nudged(layer.keys)
        return layer

    loaded = loaded_as("llama")
    monkeypatch.setattr(KVRows, "join", joined)
    warm = measured(loaded)[WarmBesideCold]
    assert not warm.same_chunks.same_bits
    assert warm.again.same_bits  # so it is no device that gives other bits each time


def test_rows_from_the_disk_that_differ_are_seen(loaded_as, measured, monkeypatch):
    loaded = loaded_as("llama")
    layers = restore.Restore.layers

    def read(self, count, headroom):
        found = layers(self, count, headroom)
        for layer in found or []:
            layer.values = nudged(layer.values)
        return found

    monkeypatch.setattr(restore.Restore, "layers", read)
    found = measured(loaded)
    assert found[WarmBesideCold].same_chunks.same_bits
    assert not found[RestoreBesideMemory].same_rows
    assert not found[RestoreBesideMemory].apart.same_bits


def test_what_the_disk_does_not_give_back_is_told(loaded_as, measured, monkeypatch):
    monkeypatch.setattr(store.DiskStore, "save", lambda self, draft: False)
    found = measured(loaded_as("llama"))
    lost = found[NotFound]
    assert (lost.part, lost.cached, lost.stored) == (RESTORED, 0, 96)
    assert lost.why
    assert BatchBesideAlone in found


def test_batches_that_differ_are_seen_though_the_engine_would_let_them(
    loaded_as, measured, monkeypatch
):
    """Its trial looks at 15 tokens; here a fault begins behind them."""
    extend = BatchKVCache.extend

    def extended(self, other):
        extend(self, other)
        if self.offset.max().item() > 18:
            self.keys = nudged(self.keys)

    loaded = loaded_as("llama")
    right = measured(loaded)[BatchBesideAlone]
    monkeypatch.setattr(BatchKVCache, "extend", extended)
    wrong = measured(loaded)[BatchBesideAlone]
    assert right.apart.logits <= right.most == wrong.most < wrong.apart.logits


def test_a_model_whose_answers_step_alone_says_why(loaded_as, measured, monkeypatch):
    loaded = loaded_as("llama")
    monkeypatch.setattr(BatchKVCache, "filter", lambda self, rows: None)
    together = measured(loaded)[BatchBesideAlone]
    assert together.rows == 0
    assert together.why


def test_a_device_that_gives_other_bits_each_time_is_known(loaded_as, measured, monkeypatch):
    loaded = loaded_as("llama")
    calls = count()
    update = KVCache.update_and_fetch

    def noisy(self, keys, values):
        return update(self, keys + 1e-5 * next(calls) ** 2, values)

    monkeypatch.setattr(KVCache, "update_and_fetch", noisy)
    warm = measured(loaded)[WarmBesideCold]
    assert not warm.same_chunks.same_bits
    assert not warm.again.same_bits


def test_logits_that_are_no_numbers_are_seen(loaded_as, measured):
    loaded = loaded_as("llama")
    loaded.model.update({"lm_head": {"weight": loaded.model.lm_head.weight * float("nan")}})
    found = measured(loaded)
    assert list(found) == [Speeds]  # beside such logits all would seem wrong
    assert not found[Speeds].finite


def test_a_context_of_few_tokens_is_measured_all_the_same(loaded_as, measured):
    found = measured(dataclasses.replace(loaded_as("llama"), context_length=1))
    assert list(found) == ALL
    assert found[Speeds].prompt == 8


class Unkept(KVCache):
    """A class of layers that nobody knows, and whose state does not round-trip."""

    @property
    def state(self):
        return ()


def test_a_model_of_which_nothing_is_kept_says_so(loaded_as, measured, monkeypatch):
    loaded = loaded_as("llama")
    layers = len(loaded.model.layers)
    monkeypatch.setattr(
        type(loaded.model),
        "make_cache",
        lambda self: [Unkept() for _ in range(layers)],
        raising=False,
    )
    found = measured(loaded)
    assert list(found) == [Speeds, NotKept, BatchBesideAlone]
    assert "Unkept" in found[NotKept].why


@pytest.mark.parametrize(
    ("left", "kinds"),
    [
        (0, [NotInTime, NotInTime, NotInTime]),
        (1, [WarmBesideCold, NotInTime, NotInTime]),
        (2, [WarmBesideCold, RestoreBesideMemory, NotInTime]),
    ],
)
def test_no_part_begins_after_the_time_is_over(left, kinds, loaded_as, tmp_path, monkeypatch):
    """The time ends behind so many of its looks at the clock between parts."""
    looks = iter([False] * left)
    monkeypatch.setattr(SelfTest, "_is_over", lambda self: next(looks, True))
    test = SelfTest(loaded_as("llama"), tmp_path / "cache", 0.0)
    speeds, *found = test.measurements()
    test.close()
    assert isinstance(speeds, Speeds)
    assert [type(one) for one in found] == kinds
    names = [one.part for one in found if isinstance(one, NotInTime)]
    assert names == [WARM, RESTORED, TOGETHER][left:]


def test_a_slow_model_is_given_fewer_tokens(loaded_as, measured):
    """By a clock on which each look takes half a second."""
    ticks = iter(range(10**6))
    found = measured(loaded_as("llama"), clock=lambda: next(ticks) / 2)
    assert found[Speeds].prompt == 64
    assert found[WarmBesideCold].cached == 48
