"""GGUF files as llama.cpp writes them, of tiny models: written by the format's own description."""

import json
import struct

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

# https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
_U32, _F32, _BOOL, _TEXT, _ARRAY = 4, 6, 7, 8, 9
F32, F16, Q8_0 = 0, 1, 8

_PLACES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tensor_name(name):
    """A tensor's name in mlx-lm's models -> in GGUF."""
    base, _, part = name.rpartition(".")
    if base.startswith("model.layers."):
        _, _, layer, inner = base.split(".", 3)
        return f"blk.{layer}.{_PLACES[inner]}.{part}"
    return f"{_PLACES[base]}.{part}"


def permuted(rows, heads):
    """Rows of queries and keys as GGUF has them for llama."""
    return rows.reshape(heads, 2, -1, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def tensors_of(model, config):
    """A model's weights as arrays of float32, named as GGUF names them."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    made = {}
    for name, array in tree_flatten(model.parameters()):
        rows, there = np.array(array.astype(mx.float32)), tensor_name(name)
        inner, part = there.split(".")[-2:]
        if config["model_type"] == "llama" and inner in heads and part == "weight":
            rows = permuted(rows, heads[inner])
        made[there] = rows
    return made


def values_of(config, tokenizer, *, words, template, rope=None):
    """The metadata of a model whose tokenizer.json is in the folder `tokenizer`."""
    kind = config["model_type"]
    made = {
        "general.architecture": kind,
        f"{kind}.embedding_length": config["hidden_size"],
        f"{kind}.block_count": config["num_hidden_layers"],
        f"{kind}.feed_forward_length": config["intermediate_size"],
        f"{kind}.attention.head_count": config["num_attention_heads"],
        f"{kind}.attention.head_count_kv": config["num_key_value_heads"],
        f"{kind}.attention.key_length": config["head_dim"],
        f"{kind}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        f"{kind}.rope.freq_base": config["rope_theta"],
        f"{kind}.context_length": config["max_position_embeddings"],
        **({} if rope is None else {f"{kind}.rope.scaling.type": rope}),
    }
    return made | tokenizer_values(tokenizer, words=words, template=template)


def tokenizer_values(folder, *, words, template):
    """A tokenizer.json as GGUF's metadata."""
    data = json.loads((folder / "tokenizer.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    ids = dict(data["model"]["vocab"])
    kinds = dict.fromkeys(ids, 1)
    for added in data["added_tokens"]:
        ids[added["content"]] = added["id"]
        kinds[added["content"]] = 3 if added["special"] else 4
    tokens = sorted(ids, key=ids.get)
    assert [ids[token] for token in tokens] == list(range(len(tokens)))
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
    made = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": words,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": [kinds[token] for token in tokens],
        "tokenizer.ggml.eos_token_id": ids[text_of(settings["eos_token"])],
        "tokenizer.chat_template": template,
    }
    return {name: value for name, value in made.items() if value is not None}


def text_of(token):
    """The text of a special token in a tokenizer's settings."""
    return token["content"] if isinstance(token, dict) else token


def write_gguf(path, values, tensors, *, kind=F32, version=3):
    """Write a file; matrices are of `kind`, and all else is of float32."""
    infos, data = b"", b""
    for name, array in tensors.items():
        stored = kind if array.ndim == 2 else F32
        body = packed(array, stored)
        sizes = array.shape[::-1]
        infos += _text(name) + struct.pack(
            f"<I{len(sizes)}QIQ", len(sizes), *sizes, stored, len(data)
        )
        data += body + bytes(-len(body) % 32)
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values))
    head += b"".join(_text(name) + _value(value) for name, value in values.items()) + infos
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


def packed(array, kind):
    """An array's bytes in a file."""
    if kind != Q8_0:
        return array.astype(np.float16 if kind == F16 else np.float32).tobytes()
    scales, rounded = _rounded(array)
    blocks = np.zeros(len(scales), np.dtype([("scale", "<f2"), ("values", "i1", 32)]))
    blocks["scale"], blocks["values"] = scales, rounded
    return blocks.tobytes()


def unpacked(array, kind):
    """The values that remain of an array in a file of this kind."""
    if array.ndim != 2 or kind == F32:
        return array
    if kind == F16:
        return array.astype(np.float16).astype(np.float32)
    scales, rounded = _rounded(array)
    return (scales.astype(np.float32)[:, None] * rounded).reshape(array.shape)


def _rounded(array):
    blocks = array.reshape(-1, 32)
    scales = (np.abs(blocks).max(1) / 127).astype(np.float16)
    whole = np.round(blocks / np.maximum(scales.astype(np.float32), 1e-8)[:, None])
    return scales, np.clip(whole, -127, 127).astype(np.int8)


def _text(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value):
    match value:
        case bool():
            return struct.pack("<I?", _BOOL, value)
        case int():
            return struct.pack("<II", _U32, value)
        case float():
            return struct.pack("<If", _F32, value)
        case str():
            return struct.pack("<I", _TEXT) + _text(value)
        case [str(), *_]:
            return struct.pack("<IIQ", _ARRAY, _TEXT, len(value)) + b"".join(map(_text, value))
        case _:
            return struct.pack(f"<IIQ{len(value)}I", _ARRAY, _U32, len(value), *value)
