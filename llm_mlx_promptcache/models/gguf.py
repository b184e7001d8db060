"""A llama model in a GGUF file -> a folder as mlx-lm loads it: config, weights, tokenizer."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ..config import create_private
from .errors import one_line

GROUP_SIZE = 32
BITS = 4
_CONTROL = 3  # GGUF's token type of special tokens

_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_IN_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(source: Path, folder: Path, *, quantized: bool) -> None:
    """Write a model folder from a GGUF file (llama, Q4_1): 4-bit and float16, or all float32.

    ValueError where the file holds something else. `folder` is made, its files are 0600.
    """
    try:
        texts, weights = _converted(source, quantized=quantized)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        # What MLX and the tokenizer raise where metadata or tensors are missing, or of other kinds.
        reason = f"{type(error).__name__} {one_line(error)}"
        raise ValueError(f"{source.name} is no llama model in GGUF: {reason}") from error
    folder.mkdir(mode=0o700)
    _write_weights(folder / "model.safetensors", weights)
    for name, text in texts.items():
        _write_text(folder / name, text)
    _sync(folder)


def _converted(source: Path, *, quantized: bool) -> tuple[dict[str, str], dict[str, mx.array]]:
    """The folder's texts by their names, and its weights."""
    loaded: Any = mx.load(str(source), return_metadata=True)
    tensors, metadata = loaded
    if metadata.get("general.architecture") != "llama":
        raise ValueError(f"{source.name} is no llama model; only that architecture is converted")
    config = _config(metadata, tied="output.weight" not in tensors)
    if quantized:
        config["quantization"] = _quantization(tensors)
    texts = {
        "config.json": _dump(config),
        "tokenizer.json": _tokenizer(metadata).to_str(),
        "tokenizer_config.json": _dump(_tokenizer_config(metadata)),
    }
    return texts, _weights(tensors, config, quantized=quantized)


def _config(metadata: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    def number(key: str) -> Any:
        return metadata[key].item()

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": number("llama.embedding_length"),
        "num_hidden_layers": number("llama.block_count"),
        "intermediate_size": number("llama.feed_forward_length"),
        "num_attention_heads": number("llama.attention.head_count"),
        "num_key_value_heads": number("llama.attention.head_count_kv"),
        "rms_norm_eps": number("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": number("llama.rope.freq_base"),
        "max_position_embeddings": number("llama.context_length"),
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": tied,
        "bos_token_id": number("tokenizer.ggml.bos_token_id"),
        "eos_token_id": number("tokenizer.ggml.eos_token_id"),
        "pad_token_id": number("tokenizer.ggml.padding_token_id"),
    }


def _weights(
    tensors: Mapping[str, mx.array], config: Mapping[str, Any], *, quantized: bool
) -> dict[str, mx.array]:
    weights: dict[str, mx.array] = {}
    for name in tensors:
        base, _, part = name.rpartition(".")
        if part != "weight":
            continue  # scales and biases come along with their weight
        for kept, array in _parts(tensors, base, quantized=quantized).items():
            heads = _heads(base, config)
            weights[f"{_renamed(base)}.{kept}"] = _unpermuted(array, heads) if heads else array
    return weights


def _parts(tensors: Mapping[str, mx.array], base: str, *, quantized: bool) -> dict[str, mx.array]:
    """One weight as the folder keeps it: dequantised, or packed with its scales and biases."""
    weight = tensors[f"{base}.weight"]
    if f"{base}.scales" not in tensors:
        return {"weight": weight.astype(mx.float16 if quantized else mx.float32)}
    scales, biases = tensors[f"{base}.scales"], tensors[f"{base}.biases"]
    if quantized:
        return {"weight": weight, "scales": scales, "biases": biases}
    # Float32 before the product, so that nothing is rounded to float16 on the way.
    scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    bits = _bits(tensors, base)
    return {"weight": mx.dequantize(weight, scales, biases, group_size=GROUP_SIZE, bits=bits)}


def _bits(tensors: Mapping[str, mx.array], base: str) -> int:
    """Bits of one packed weight: the embedding of a Q4_1 file has 8 of them."""
    packed, groups = tensors[f"{base}.weight"].shape[-1], tensors[f"{base}.scales"].shape[-1]
    return int(packed * 32 // (groups * GROUP_SIZE))


def _quantization(tensors: Mapping[str, mx.array]) -> dict[str, Any]:
    """The config's entry, with the weights named that have other bits than most."""
    quantisation: dict[str, Any] = {"group_size": GROUP_SIZE, "bits": BITS}
    for name in tensors:
        base = name.removesuffix(".scales")
        if base != name and (bits := _bits(tensors, base)) != BITS:
            quantisation[_renamed(base)] = {"group_size": GROUP_SIZE, "bits": bits}
    return quantisation


def _renamed(base: str) -> str:
    """`blk.3.attn_q` -> `model.layers.3.self_attn.q_proj`; ValueError where it is unknown."""
    match base.split("."):
        case [top] if top in _TOP:
            return _TOP[top]
        case ["blk", layer, inner] if inner in _IN_LAYER:
            return f"model.layers.{layer}.{_IN_LAYER[inner]}"
    raise ValueError(f"unknown tensor {base!r} in the GGUF file; it is no plain llama model")


def _heads(base: str, config: Mapping[str, Any]) -> int:
    """How many heads the rows of this tensor are permuted by; 0 where they are not."""
    if base.endswith(".attn_q"):
        return int(config["num_attention_heads"])
    return int(config["num_key_value_heads"]) if base.endswith(".attn_k") else 0


def _unpermuted(array: mx.array, heads: int) -> mx.array:
    """GGUF interleaves the two halves of each head's rows for its RoPE; mlx-lm doesn't."""
    rows, *rest = array.shape
    halves = array.reshape(heads, rows // heads // 2, 2, *rest)
    return mx.contiguous(halves.swapaxes(1, 2)).reshape(rows, *rest)


def _tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """Byte-level BPE with GPT-2's regex, digits one by one, special tokens kept whole."""
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata["tokenizer.ggml.token_type"].tolist()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    return tokenizer


def _tokenizer_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]

    def token(kind: str) -> str:
        return tokens[int(metadata[f"tokenizer.ggml.{kind}_token_id"].item())]

    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "pad_token": token("padding"),
        "unk_token": token("unknown"),
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata["llama.context_length"].item(),
        "chat_template": metadata["tokenizer.chat_template"],
    }


def _dump(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _write_weights(path: Path, weights: dict[str, mx.array]) -> None:
    # MLX would make the file readable for all; it keeps the mode of one that is there.
    _write_text(path, "")
    mx.save_safetensors(str(path), weights, metadata={"format": "mlx"})
    _sync(path)


def _write_text(path: Path, text: str) -> None:
    with os.fdopen(create_private(path), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """To the disk itself, so that a power cut can't leave a renamed folder with empty files."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
