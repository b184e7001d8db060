"""Law 1 through a file: what leaves one cache and comes into another answers as a cold run does."""

import dataclasses

import families
import mlx.core as mx
import pytest
import trials
from mlx_lm.models.cache import KVCache

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.exchange import (
    OtherPrefix,
    Prefix,
    export_prefix,
    import_prefix,
    open_prefix,
)
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.models.held_shapes import OtherLayers, check_held
from llm_mlx_promptcache.models.kv_settings import KVSettings

NS, PATH = trials.NAMESPACE, trials.PATH
ABOUT = {"model files": "a digest", "mlx": "0.1"}
# Every kind of layer, alone and mixed.
# fmt: off
KINDS = [
    "llama", "deepseek_v3", "gemma3_text", "gpt_oss", "llama4", "mamba2", "jamba", "qwen3_next",
    "falcon_h1", "recurrent_gemma", "rwkv7", "deepseek_v32", "longcat_flash", "baichuan_m1",
]
# fmt: on


def sent(cache, file, tokens=PATH):
    return export_prefix(cache, Prefix(NS, tokens, ABOUT, "user"), file)


def taken(file, store, namespace=NS, about=ABOUT):
    with open_prefix(file) as found:
        return import_prefix(PromptCache("1GB", store), found, namespace, about)


@pytest.mark.parametrize("name", KINDS)
def test_law_1_through_a_file(name, tmp_path):
    trial, file = trials.Trial(families.BY_NAME[name]), tmp_path / "sent"
    cache = PromptCache("100MB")
    trial.keep(cache, PATH)
    assert sent(cache, file).tokens == len(PATH)
    with open_prefix(file) as found:
        check_held(trial.model, None, found.head.layout, found.outline())
    store = DiskStore(tmp_path / "cache")
    assert taken(file, store, "of theirs") == len(PATH)
    assert store.check() == []
    prompt = [*PATH, *trials.words(9, 5)]
    lease = PromptCache("100MB", store).fetch("of theirs", prompt, headroom=8)
    assert lease.cached == len(PATH)
    trial.check(lease, prompt, 8)


def test_law_1_of_quantised_rows(tmp_path):
    wide = dataclasses.replace(families.BY_NAME["llama"], own={"head_dim": 32})
    trial, file = trials.Trial(wide, quantized=8), tmp_path / "sent"
    cache = PromptCache("100MB")
    trial.keep(cache, PATH)
    sent(cache, file)
    with open_prefix(file) as found:
        check_held(trial.model, KVSettings(8, 32), found.head.layout, found.outline())
        with pytest.raises(OtherLayers, match="'bits': 8"):
            check_held(trial.model, KVSettings(4, 32), found.head.layout, found.outline())
        with pytest.raises(OtherLayers, match=r"quantized_rows .* there and .* rows"):
            check_held(trial.model, None, found.head.layout, found.outline())


def test_other_layers_are_told_apart_array_by_array(tmp_path):
    trial, file = trials.Trial(families.BY_NAME["llama"]), tmp_path / "sent"
    cache = PromptCache("100MB")
    layers = trial.layers()
    for layer in layers:
        layer.update_and_fetch(*(mx.zeros((1, 2, 20, 24)) for _ in range(2)))
    cache.insert(NS, PATH[:20], layers)
    sent(cache, file, PATH[:20])
    with open_prefix(file) as found, pytest.raises(OtherLayers, match="layer 0 holds float32"):
        check_held(trial.model, None, found.head.layout, found.outline())


def rows_of(dtype, count=60, seed=1):
    mx.random.seed(seed)
    layer = KVCache()
    shape = (1, 2, count, 64)
    layer.update_and_fetch(*(mx.random.normal(shape).astype(dtype) for _ in range(2)))
    return [layer]


@pytest.mark.parametrize(
    ("dtype", "kind", "most"), [(mx.float32, b"cache/5", 1.1), (mx.bfloat16, b"pack/2", 0.85)]
)
def test_rows_come_back_bit_for_bit_coded_where_it_pays(tmp_path, dtype, kind, most):
    cache, layers = PromptCache("100MB"), rows_of(dtype)
    cache.insert(NS, PATH, layers)
    done = sent(cache, tmp_path / "sent")
    assert kind in (tmp_path / "sent").read_bytes()[:4096]
    assert done.bytes == (tmp_path / "sent").stat().st_size
    assert done.bytes < most * 2 * 2 * 60 * 64 * dtype.size + 2000
    store = DiskStore(tmp_path / "cache")
    taken(tmp_path / "sent", store)
    lease = PromptCache("100MB", store).fetch(NS, [*PATH, 1])
    assert lease.cached == len(PATH)
    for name in ("keys", "values"):
        one, other = (getattr(held[0], name)[..., :60, :] for held in (lease.layers, layers))
        assert mx.array_equal(one.view(mx.uint8), other.view(mx.uint8))


@pytest.mark.parametrize("known", [1, 31, 60, 75])
def test_only_what_is_not_there_comes_in(tmp_path, known):
    ids = [*PATH, *range(20)]
    cache, store = PromptCache("100MB"), DiskStore(tmp_path / "cache")
    cache.insert(NS, ids, rows_of(mx.float32, 80))
    sent(cache, tmp_path / "sent")
    before = PromptCache("100MB", store)
    before.insert(NS, ids[:known], rows_of(mx.float32, known))
    before.flush()
    assert taken(tmp_path / "sent", store) == len(PATH)
    assert store.stats()["tokens"] == max(known, len(PATH))
    assert store.check() == []


def test_a_file_ends_where_a_path_can_be_resumed(tmp_path):
    trial = trials.Trial(families.BY_NAME["mamba2"])
    cache = PromptCache("100MB")
    trial.keep(cache, PATH)
    assert sent(cache, tmp_path / "sent", PATH[:50]).tokens == 45
    with pytest.raises(ValueError, match="nothing of these 3 tokens is stored"):
        sent(cache, tmp_path / "none", [1, 2, 3])


def test_what_differs_is_said_with_both_values(tmp_path):
    cache = PromptCache("100MB")
    cache.insert(NS, PATH, rows_of(mx.float32))
    sent(cache, tmp_path / "sent")
    store = DiskStore(tmp_path / "cache")
    with pytest.raises(OtherPrefix) as told:
        taken(tmp_path / "sent", store, about={"model files": "a digest", "mlx": "0.2", "a": "b"})
    assert str(told.value) == (
        "sent can't be used here: mlx is '0.1' there and is '0.2' here;"
        " a is not said there and is 'b' here"
    )
    assert store.stats()["spans"] == 0


def test_a_name_that_is_taken_is_left_alone(tmp_path):
    cache = PromptCache("100MB")
    cache.insert(NS, PATH, rows_of(mx.float32))
    (tmp_path / "sent").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("sent", "link"):
        with pytest.raises(FileExistsError):
            sent(cache, tmp_path / name)
    assert (tmp_path / "sent").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()
