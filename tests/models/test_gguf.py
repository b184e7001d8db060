"""GGUF files converted: the logits and ids of the model that they were made from, or an error."""

import importlib
import json
import random
import struct
from typing import NamedTuple

import gguf_files
import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_unflatten
from real_tokenizers import real_tokenizer
from transformers import AutoTokenizer

from llm_mlx_promptcache import config as settings
from llm_mlx_promptcache.models import gguf, gguf_folder, gguf_header
from llm_mlx_promptcache.models.errors import ModelLoadError
from llm_mlx_promptcache.models.gguf_folder import converted_folder
from llm_mlx_promptcache.models.loading import load_model

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def tiny(kind, **more):
    """A random model of a kind, and its config."""
    config = {
        "model_type": kind,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32 if kind == "qwen3" else 16,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "vocab_size": 304,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        **more,
    }
    module = importlib.import_module(f"mlx_lm.models.{kind}")
    model = module.Model(module.ModelArgs.from_dict(config))
    mx.random.seed(7)
    parameters = [
        (name, mx.random.normal(array.shape) * 0.3 + ("norm" in name))
        for name, array in sorted(gguf_files.tree_flatten(model.parameters()))
    ]
    model.update(tree_unflatten(parameters))
    return model, config


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    return tiny_llama()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv(settings.HOME_VARIABLE, str(tmp_path / "home"))
    return tmp_path / "home"


def written(path, tokenizer, made, *, kind=gguf_files.F32, gone=(), tensors=None, **values):
    """A file of a model, with some of its metadata left out or set otherwise."""
    model, config = made
    told = gguf_files.values_of(config, tokenizer, words="smollm", template=TEMPLATE)
    told = {name: value for name, value in (told | values).items() if name not in gone}
    arrays = gguf_files.tensors_of(model, config) | (tensors or {})
    return gguf_files.write_gguf(path, told, arrays, kind=kind)


IDS = mx.array([[3, 70, 9, 101, 33, 5, 250, 17]])


@pytest.mark.parametrize("variant", ["f32", "q4"])
@pytest.mark.parametrize("kind", [gguf_files.F32, gguf_files.F16, gguf_files.Q8_0])
@pytest.mark.parametrize("family", ["llama", "llama3", "tied", "qwen2", "qwen3"])
def test_the_converted_model_is_the_one_it_was_made_from(
    tmp_path, tokenizer, monkeypatch, family, kind, variant
):
    monkeypatch.setattr(gguf_folder, "native_variant", lambda: variant)
    more = {"llama3": {"rope_scaling": LLAMA3}, "tied": {"tie_word_embeddings": True}}
    kind_of = {"llama3": "llama", "tied": "llama"}
    model, config = tiny(kind_of.get(family, family), **more.get(family, {}))
    factors = {"rope_freqs.weight": llama3_factors()} if family == "llama3" else {}
    path = written(tmp_path / "m.gguf", tokenizer, (model, config), kind=kind, tensors=factors)
    kept = [
        (name, mx.array(gguf_files.unpacked(np.array(array), kind)))
        for name, array in gguf_files.tree_flatten(model.parameters())
    ]
    model.update(tree_unflatten(kept))
    found = load_model(str(converted_folder(path)))
    assert found.config["model_type"] == config["model_type"]
    assert found.context_length == 4096
    theirs, ours = model(IDS), found.model(IDS).astype(mx.float32)
    near = 1e-4 if variant == "f32" else 0.05
    assert mx.abs(theirs - ours).max().item() < near * mx.abs(theirs).max().item()


def llama3_factors(factor=32.0, base=500_000.0, width=16):
    """Factors as llama.cpp's converter writes them."""
    made = []
    for at in range(0, width, 2):
        wave = 2 * np.pi * base ** (at / width)
        if wave < 8192 / 4:
            made.append(1.0)
        elif wave > 8192:
            made.append(factor)
        else:
            smooth = (8192 / wave - 1) / 3
            made.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(made, np.float32)


TEXTS = (
    "Hello, world! It's 12345 o'clock.\n\n  Indented  twice \tand   more\r\n",
    "naïve café 你好\uff0c世界 🎉 e\u0301 \U0001d4b3 don't I'LL WE'VE x=1000000;",
    "<think>a</think> <|im_start|>user\n<|eot_id|> 3.14159 __init__(self)",
    " \n \n\n\t", "", "a" * 300, "1 22 333 4444 55555",
    "một việc jeho ektedir",  # whole words that Llama 3.1's merges do not reach
)  # fmt: skip


@pytest.mark.parametrize(("name", "words"), [("qwen3", "qwen2"), ("llama3_1", "llama-bpe")])
def test_a_real_tokenizer_gives_the_same_ids(tmp_path, name, words):
    folder = real_tokenizer(name)
    values = gguf_files.tokenizer_values(folder, words=words, template=TEMPLATE)
    path = gguf_files.write_gguf(
        tmp_path / "t.gguf",
        values | {"general.architecture": "llama"},
        {"token_embd.weight": np.zeros((1, 32), np.float32)},
    )
    _, metadata = mx.load(str(path), return_metadata=True)
    ours = gguf.tokenizer_of(metadata)
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == theirs.encode(text, add_special_tokens=False), text
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)


def block_file(path, kind, size):
    """A file of one matrix of 2 by 256 zeros, of any kind."""
    text = struct.pack("<Q", 8) + b"x.weight"
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0)
    head += text + struct.pack("<IQQIQ", 2, 256, 2, kind, 0)
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(size))
    return path


@pytest.mark.parametrize("kind", gguf_header.PACKINGS)
def test_mlx_reads_each_kind_of_tensor_that_is_said_to_be_read(tmp_path, kind):
    packing = gguf_header.PACKINGS[kind]
    path = block_file(tmp_path / "k.gguf", kind, 512 // packing.values * packing.bytes)
    (tensor,) = gguf_header.read_header(path).tensors
    assert (tensor.values, tensor.kind) == (512, kind)
    assert "x.weight" in mx.load(str(path))
    block_file(path, kind, 512 // packing.values * packing.bytes - 1)
    with pytest.raises(ValueError, match=r"it ends inside of its tensor 'x\.weight'"):
        gguf_header.read_header(path)


@pytest.mark.parametrize("kind", [*gguf_header._OTHERS, 999])
def test_other_kinds_are_refused_by_name(tmp_path, kind):
    path = block_file(tmp_path / "k.gguf", kind, 4096)
    name = gguf_header._OTHERS.get(kind, "of kind 999")
    with pytest.raises(ValueError, match=rf"'x\.weight' is {name}, and MLX reads F32, F16, Q4_0"):
        gguf_header.read_header(path)


def test_a_damaged_file_is_a_line_and_never_more(tmp_path, tokenizer):
    path = written(tmp_path / "m.gguf", tokenizer, tiny("llama"))
    whole, seed = path.read_bytes(), random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    for _ in range(300):
        damaged = bytearray(whole[: dice.randrange(8000)] if dice.random() < 0.3 else whole)
        for _ in range(dice.randrange(1, 4)):
            at = dice.randrange(min(len(damaged), 6000) or 1) if damaged else 0
            damaged[at : at + 1] = dice.randbytes(1)
        path.write_bytes(damaged)
        try:
            gguf.check_convertible(path)
        except ValueError as error:
            (line,) = str(error).splitlines()
            assert len(line) < 400


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"general.architecture": "mamba"}, "its architecture is 'mamba', and not llama, qwen2"),
        ({"llama.rope.scaling.type": "yarn"}, "its positions are scaled ('yarn')"),
        ({"tokenizer.ggml.model": "llama"}, "its tokenizer is of the kind 'llama'"),
        ({"tokenizer.ggml.pre": "tekken"}, "its tokenizer is 'tekken', and not smollm"),
        ({"tensors": {"blk.0.ffn_gate_inp.weight": np.zeros((2, 2))}}, "'blk.0.ffn_gate_inp'"),
        ({"tensors": {"blk.0.attn_q.bias": np.zeros(2)}}, "'blk.0.attn_q.bias', which has no"),
        ({"tensors": {"rope_freqs.weight": np.full(8, 3.0)}}, "factors of its own"),
        ({"gone": ("tokenizer.chat_template",)}, "it has no chat template, so it is a base"),
        ({"gone": ("llama.block_count",)}, "KeyError"),
        ({"tokenizer.ggml.eos_token_id": 10**6}, "IndexError"),
    ],
)  # fmt: skip
def test_what_can_not_be_converted_is_told_and_what_to_do(tmp_path, tokenizer, home, change, words):
    path = written(tmp_path / "m.gguf", tokenizer, tiny("llama"), **change)
    with pytest.raises(ModelLoadError) as caught:
        converted_folder(path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("m.gguf can't be converted: ")
    assert words in line
    assert line.endswith("or its conversion from mlx-community")
    models = home / "data" / "models"
    assert not models.exists() or [p.name for p in models.iterdir() if p.name != ".lock"] == []


def test_a_file_is_converted_once_by_what_it_holds(tmp_path, tokenizer, monkeypatch):
    path = written(tmp_path / "My model (v1).gguf", tokenizer, tiny("llama"))
    made, convert = [], gguf_folder.convert
    monkeypatch.setattr(
        gguf_folder, "convert", lambda *given, **named: (made.append(1), convert(*given, **named))
    )
    folder = converted_folder(path)
    assert folder.name.startswith("My-model-v1-")
    assert converted_folder(path) == folder
    assert converted_folder(path.rename(tmp_path / "other name.gguf")) == folder
    assert len(made) == 1
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 304


class Room(NamedTuple):
    """The part of `shutil.disk_usage`'s result that is read."""

    free: int


def test_a_file_that_is_too_large_is_refused_before_anything_is_made(
    tmp_path, tokenizer, home, monkeypatch
):
    path = written(tmp_path / "m.gguf", tokenizer, tiny("llama"))
    monkeypatch.setattr(gguf_folder, "budget", lambda: 1000)
    with pytest.raises(ModelLoadError, match=r"m.gguf takes .*, and models may take 1.0 kB"):
        converted_folder(path)
    monkeypatch.setattr(gguf_folder, "budget", lambda: 1 << 40)
    monkeypatch.setattr(gguf_folder.shutil, "disk_usage", lambda place: Room(free=1000))
    with pytest.raises(ModelLoadError, match=r"m.gguf becomes .* has room for 1.0 kB"):
        converted_folder(path)
    assert list((home / "data" / "models").glob("m-*")) == []
