"""A model shows that its answers together are those alone before any batch: once, and it lasts."""

import json

import families
import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.cache import (
    ArraysCache,
    BatchKVCache,
    BatchRotatingKVCache,
    KVCache,
    RotatingKVCache,
)
from readers import Counting, Reader, request

from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.engine import batch_probe
from llm_mlx_promptcache.engine.batch_layers import BatchForm
from llm_mlx_promptcache.engine.batch_probe import BatchProof, prove
from llm_mlx_promptcache.models import facts
from llm_mlx_promptcache.models.facts import ModelFacts
from llm_mlx_promptcache.models.layers import make_layers

MODEL = "a" * 64
ALONE = {
    "afm7": "off by",
    "gpt_bigcode": "steps in a batch fail",
    "minimax_m3_vl": "padded rows into other blocks",
    "llama4": "no batched form",
    "deepseek_v41": "no batched form",
}
GROUPED = {"gemma2"}


@pytest.mark.parametrize("name", [family.name for family in families.FAMILIES])
def test_every_family_has_its_verdict(name):
    """The verdict in docs/models.md; another one is another mlx-lm, or a fault of the trial."""
    model = Counting(families.BY_NAME[name].build())
    verdict = prove(model)
    assert verdict.lasting
    assert model.passes <= 24
    assert model.tokens <= 45
    if name in ALONE:
        assert verdict.form is BatchForm.ALONE
        assert name == "minimax_m3_vl" or ALONE[name] in verdict.why
    else:
        assert verdict.form is (BatchForm.GROUPED if name in GROUPED else BatchForm.PLAIN)


@pytest.mark.parametrize("name", ["gemma3_text", "gpt_oss", "cohere2", "recurrent_gemma"])
def test_windows_of_any_size_are_passed(name, monkeypatch):
    """A fault that only shows past a window's end is seen in few tokens, whatever its size."""
    widths = {"sliding_window": 4096, "attention_window_size": 4096}
    family = families.BY_NAME[name]
    model = families.Family(
        name, {**family.own, **widths}, family.inside, family.scale, family.chunked
    ).build()
    assert prove(model).form is BatchForm.PLAIN
    make_mask = BatchRotatingKVCache.make_mask

    def fails(layer, *args, **more):
        mask = make_mask(layer, *args, **more)
        return mx.ones_like(mask) if layer.rotated else mask

    monkeypatch.setattr(BatchRotatingKVCache, "make_mask", fails)
    assert prove(model).form is BatchForm.ALONE


class Slots(BatchKVCache):
    """Positions counted with the padding before them."""

    @property
    def offset(self):
        return mx.full(self._offset.shape, self._idx)

    @offset.setter
    def offset(self, value):
        self._offset = value


def keeps_the_first(layer, rows):
    layer.cache = [part[mx.array([0] * len(rows))] for part in layer.cache]


def spoilt_join(real):
    def extend(layer, other):
        real(layer, other)
        layer.keys = layer.keys + mx.arange(layer.keys.shape[0])[:, None, None, None] // 2

    return extend


def spoilt_copy(real):
    def extract(layer, row):
        found = real(layer, row)
        found.keys = mx.roll(found.keys, 1, axis=2)
        return found

    return extract


def test_positions_that_count_padding_are_seen(monkeypatch):
    model = families.BY_NAME["llama"].build()
    monkeypatch.setattr(KVCache, "merge", classmethod(lambda _, layers: Slots.merge(layers)))
    assert prove(model).form is BatchForm.ALONE


def test_padding_that_is_looked_at_is_seen(monkeypatch):
    model = families.BY_NAME["llama"].build()
    monkeypatch.setattr(
        BatchKVCache,
        "make_mask",
        lambda layer, count, **_: mx.ones((count, layer._idx + count), mx.bool_),
    )
    assert prove(model).form is BatchForm.ALONE


@pytest.mark.parametrize(
    ("family", "kind", "method", "fault"),
    [
        ("llama", BatchKVCache, "extend", spoilt_join),
        ("llama", BatchKVCache, "filter", lambda _: lambda layer, rows: None),
        ("llama", BatchKVCache, "extract", spoilt_copy),
        ("mamba2", ArraysCache, "filter", lambda _: keeps_the_first),
        ("gemma3_text", BatchRotatingKVCache, "extract", spoilt_copy),
    ],
)
def test_rows_that_join_leave_and_come_out_wrong_are_seen(family, kind, method, fault, monkeypatch):
    model = families.BY_NAME[family].build()
    assert prove(model).form is BatchForm.PLAIN
    monkeypatch.setattr(kind, method, fault(getattr(kind, method)))
    assert prove(model).form is BatchForm.ALONE


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text", "mamba2", "gemma2"])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_rounding_is_no_fault(name, dtype, monkeypatch):
    """Coarse numbers pass, and a fault is seen in them."""
    model = families.BY_NAME[name].build()
    model.set_dtype(dtype)
    found = prove(model).form
    assert found is not BatchForm.ALONE
    monkeypatch.setattr(BatchKVCache, "extend", spoilt_join(BatchKVCache.extend))
    monkeypatch.setattr(ArraysCache, "filter", keeps_the_first)
    assert prove(model).form is BatchForm.ALONE


class Rounding:
    """A model whose logits are so far off in chunks, and so far in batches."""

    def __init__(self, model, chunks, batches):
        self.model, self.chunks, self.batches = model, chunks, batches

    def __call__(self, tokens, cache=None):
        rows, count = tokens.shape
        off = self.batches if rows > 1 else self.chunks if count > 10 else 0.0
        return self.model(tokens, cache=cache) + off

    def __getattr__(self, name):
        return getattr(self.model, name)


@pytest.mark.parametrize(
    ("chunks", "batches", "form"),
    [
        (0.0, 5e-5, BatchForm.PLAIN),  # law 1's bound
        (0.0, 3e-2, BatchForm.ALONE),
        (1e-2, 3e-2, BatchForm.PLAIN),  # within the model's own rounding
        (1e-2, 6e-2, BatchForm.ALONE),
        (10.0, 3.0, BatchForm.ALONE),  # which excuses no more than a part of the range
    ],
)
def test_agreement_is_judged_by_the_model_s_own_rounding(chunks, batches, form):
    model = families.BY_NAME["llama"].build()
    assert prove(Rounding(model, chunks, batches)).form is form


def test_four_bits_are_no_fault():
    model = families.Family(
        "llama", {"head_dim": 32, "hidden_size": 64, "intermediate_size": 64}
    ).build()
    nn.quantize(model, 32, 4)
    model.set_dtype(mx.bfloat16)
    assert prove(model).form is BatchForm.PLAIN


def test_sparse_attention_is_refused_though_few_tokens_do_not_show_it(monkeypatch):
    """minimax_m3_vl looks at all of a short row; the trial may be shorter than that."""
    family = families.BY_NAME["minimax_m3_vl"]
    blocks = {**family.own["sparse_attention_config"], "sparse_topk_blocks": 8}
    model = families.Family(family.name, {"sparse_attention_config": blocks}, family.inside).build()
    assert prove(model).form is BatchForm.ALONE
    monkeypatch.setattr(batch_probe, "_NEVER", {})
    assert prove(model).form is BatchForm.PLAIN  # so it is needed,
    assert prove(family.build()).form is BatchForm.ALONE  # and mlx-lm still does it


class Together:
    """The model of a proof: counted, and failing where it is told to."""

    def __init__(self, model):
        self.model, self.passes, self.fault = model, 0, None

    def __call__(self, tokens, cache=None):
        self.passes += 1
        if self.fault is not None and tokens.shape[0] > 1:
            raise self.fault
        return self.model(tokens, cache=cache)

    def __getattr__(self, name):
        return getattr(self.model, name)


@pytest.fixture
def model():
    return Together(families.BY_NAME["llama"].build())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "facts.json"


def test_it_is_asked_once_a_process_and_once_a_model(model, path):
    first = BatchProof(model, MODEL, ModelFacts(path))
    assert first.form is first.form is BatchForm.PLAIN
    passes = model.passes
    assert passes > 10
    assert BatchProof(model, MODEL, ModelFacts(path)).form is BatchForm.PLAIN
    assert model.passes == passes
    assert BatchProof(model, "b" * 64, ModelFacts(path)).form is BatchForm.PLAIN
    assert model.passes == 2 * passes
    assert BatchProof(model, "unknown", ModelFacts(path)).form is BatchForm.PLAIN
    assert model.passes == 3 * passes


def test_a_new_mlx_lm_is_asked_again(model, path, monkeypatch):
    model.fault = ValueError("[broadcast_shapes] other shapes")
    assert BatchProof(model, MODEL, ModelFacts(path)).form is BatchForm.ALONE
    model.fault = None
    assert BatchProof(model, MODEL, ModelFacts(path)).form is BatchForm.ALONE
    monkeypatch.setattr(facts, "version", lambda name: "another")
    assert BatchProof(model, MODEL, ModelFacts(path)).form is BatchForm.PLAIN


def test_a_machine_s_failure_is_not_remembered(model, path, monkeypatch):
    def no_memory(*_):
        raise RuntimeError("[metal::malloc] no more memory")

    with monkeypatch.context() as patched:
        patched.setattr(batch_probe, "prefill", no_memory)
        assert BatchProof(model, MODEL, ModelFacts(path)).form is BatchForm.ALONE
    with monkeypatch.context() as patched:
        patched.setattr(batch_probe, "merge", no_memory)
        assert BatchProof(model, MODEL, ModelFacts(path)).form is BatchForm.ALONE
    assert not path.exists()
    assert BatchProof(model, MODEL, ModelFacts(path)).form is BatchForm.PLAIN


@pytest.mark.parametrize(
    "known",
    [
        None,
        [],
        "plain",
        {"form": "plain"},
        {"form": [], "why": ""},
        {"form": 1, "why": ""},
    ],
)
def test_what_is_remembered_wrongly_is_found_out_again(model, path, known):
    ModelFacts(path).put(MODEL, "batch/1", known)
    assert BatchProof(model, MODEL, ModelFacts(path)).form is BatchForm.PLAIN
    assert model.passes > 10
    [entry] = json.loads(path.read_text())["facts"]
    assert entry[-2] == {"form": "plain", "why": ""}


def test_another_trial_s_verdict_is_none_of_this_one(model, path):
    ModelFacts(path).put(MODEL, "batch/0", {"form": "alone", "why": "an older trial"})
    assert BatchProof(model, MODEL, ModelFacts(path)).form is BatchForm.PLAIN
    assert model.passes > 10


@pytest.mark.parametrize(
    ("name", "form"), [("gemma3_text", "grouped"), ("minimax_m3_vl", "plain"), ("mamba", "grouped")]
)
def test_law_1_a_verdict_that_a_model_can_not_have_is_not_believed(path, name, form):
    ModelFacts(path).put(MODEL, "batch/1", {"form": form, "why": ""})
    model = families.BY_NAME[name].build()
    assert BatchProof(model, MODEL, ModelFacts(path)).form is prove(model).form
    [entry] = json.loads(path.read_text())["facts"]
    assert entry[-2]["form"] != form


def test_why_answers_step_alone_is_said_once(model, path, caplog):
    model.fault = ValueError("[broadcast_shapes] other shapes")
    caplog.set_level("INFO")
    proof = BatchProof(model, MODEL, ModelFacts(path))
    for _ in range(3):
        assert proof.form is BatchForm.ALONE
    [said] = caplog.messages
    assert "steps in a batch fail ([broadcast_shapes] other shapes)" in said


def test_one_request_alone_asks_nothing(scheduler_of, monkeypatch):
    monkeypatch.setattr(batch_probe, "prove", lambda _: pytest.fail("one has no batch"))
    scheduler = scheduler_of(PromptCache("100MB"))
    for text in ("One?", "Two?"):
        scheduler.add(Reader(request(text)))
        while scheduler.busy:
            scheduler.step()


def test_a_window_of_the_trial_is_the_layers_alone():
    """The model's own layers keep their windows: only the trial's are made narrow."""
    model = families.BY_NAME["gemma3_text"].build()
    narrow = batch_probe._narrowed([RotatingKVCache(4096), KVCache()])
    assert [getattr(layer, "max_size", None) for layer in narrow] == [8, None]
    before = [getattr(layer, "max_size", None) for layer in make_layers(model)]
    prove(model)
    assert [getattr(layer, "max_size", None) for layer in make_layers(model)] == before
