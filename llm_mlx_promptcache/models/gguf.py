"""A model in a GGUF file -> a folder as mlx-lm loads it: config, weights, tokenizer."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from ..cache.disk.files import to_disk
from ..config import create_private
from .errors import one_line
from .gguf_header import GGUFHeader, read_header
from .gguf_tokenizer import check_tokenizer, token_ids, tokenizer_config, tokenizer_of

GROUP_SIZE = 32
BITS = 4

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
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE = "rope_freqs"  # Llama 3.1's divisors for the frequencies of its positions


class Architecture(NamedTuple):
    """mlx-lm's terms for one of GGUF's architectures; `permuted`: GGUF orders rows differently."""

    class_name: str
    permuted: bool
    biases: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()


ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", permuted=True),
    "qwen2": Architecture(
        "Qwen2ForCausalLM", permuted=False, biases=("attn_q", "attn_k", "attn_v")
    ),
    "qwen3": Architecture("Qwen3ForCausalLM", permuted=False, norms=("attn_q_norm", "attn_k_norm")),
}


def convert(source: Path, folder: Path, *, quantized: bool) -> None:
    """Write a model folder from a GGUF file: packed as it is with float16, or all float32.

    ValueError, one line, if the file holds anything that can't be converted. `folder` is made, its
    files are 0600.
    """
    check_convertible(source)
    try:
        texts, weights = _converted(source, quantized=quantized)
    except ValueError as error:
        raise ValueError(f"{source.name} can't be converted: {one_line(error)}") from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        # Raised by MLX and the tokenizer if metadata or tensors are missing or of other kinds.
        reason = f"{type(error).__name__} {one_line(error)}"
        raise ValueError(f"{source.name} can't be converted: {reason}") from error
    folder.mkdir(mode=0o700)
    _write_weights(folder / "model.safetensors", weights)
    for name, text in texts.items():
        _write_text(folder / name, text)
    _sync(folder)


def check_convertible(source: Path) -> GGUFHeader:
    """The header of a GGUF file that can be converted, by all that it says; ValueError, one line.

    MLX is not given the file before this check: its reader ends the process on some errors.
    """
    try:
        header = read_header(source)
        architecture = _architecture(header.values)
        scaling = header.values.get(f"{header.values['general.architecture']}.rope.scaling.type")
        if scaling not in (None, "none"):
            raise ValueError(f"its positions are scaled ({scaling!r}), which is not converted")
        for tensor in header.tensors:
            _check_tensor(tensor.name, architecture)
        check_tokenizer(header.values)
        if not header.values.get("tokenizer.chat_template"):
            raise ValueError(
                "it has no chat template, so it is a base model; use its chat version"
                " (the name often ends in Instruct)"
            )
    except ValueError as error:
        raise ValueError(f"{source.name} can't be converted: {error}") from error
    return header


def _architecture(values: Mapping[str, Any]) -> Architecture:
    name = values.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ValueError(f"its architecture is {name!r}, and not {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def _check_tensor(name: str, architecture: Architecture) -> None:
    """ValueError for a tensor that has no place in mlx-lm's model."""
    base, _, part = name.rpartition(".")
    inner = base.rpartition(".")[2]
    if name == f"{_ROPE}.weight" and architecture.permuted:
        return
    _renamed(base)
    allowed = part == "weight" or (part == "bias" and inner in architecture.biases)
    if not allowed or (inner.endswith(("_q_norm", "_k_norm")) and inner not in architecture.norms):
        raise ValueError(f"it has a tensor {name[:80]!r}, which has no place in this kind of model")


def _converted(source: Path, *, quantized: bool) -> tuple[dict[str, str], dict[str, mx.array]]:
    """The folder's texts by their names, and its weights."""
    loaded: Any = mx.load(str(source), format="gguf", return_metadata=True)
    tensors, metadata = loaded
    config = _config(metadata, tied="output.weight" not in tensors)
    config["vocab_size"] = tensors["token_embd.weight"].shape[0]
    if (factors := tensors.pop(f"{_ROPE}.weight", None)) is not None:
        config["rope_scaling"] = _llama3_scaling(factors, config)
    if quantized:
        config["quantization"] = _quantization(tensors)
    texts = {
        "config.json": _dump(config),
        "tokenizer.json": tokenizer_of(metadata).to_str(),
        "tokenizer_config.json": _dump(tokenizer_config(metadata, config)),
    }
    return texts, _weights(tensors, config, quantized=quantized)


def _config(metadata: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    kind = metadata["general.architecture"]

    def number(key: str, otherwise: Any = None) -> Any:
        found = metadata.get(f"{kind}.{key}")
        if found is None and otherwise is not None:
            return otherwise
        return metadata[f"{kind}.{key}"].item()

    heads = number("attention.head_count")
    return {
        "architectures": [ARCHITECTURES[kind].class_name],
        "model_type": kind,
        "hidden_size": number("embedding_length"),
        "num_hidden_layers": number("block_count"),
        "intermediate_size": number("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv", heads),
        "head_dim": number("attention.key_length", number("embedding_length") // heads),
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon"),
        "rope_theta": number("rope.freq_base", 10000.0),
        "max_position_embeddings": number("context_length"),
        "tie_word_embeddings": tied,
        **token_ids(metadata),
    }


def _llama3_scaling(factors: mx.array, config: Mapping[str, Any]) -> dict[str, Any]:
    """The scaling that has these factors, as in Llama 3.1 and later; ValueError for others.

    https://arxiv.org/abs/2407.21783, and `rope_scaling` in the configs of these models.
    """
    factor: Any = factors.max().item()
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    width = config["head_dim"]
    waves = 2 * mx.pi * config["rope_theta"] ** (mx.arange(0, width, 2) / width)
    smooth = mx.clip((8192 / waves - 1.0) / (4.0 - 1.0), 0.0, 1.0)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if factors.shape != expected.shape or not mx.allclose(factors, expected, rtol=1e-3).item():
        raise ValueError("its positions are scaled by factors of its own")
    return scaling


def _weights(
    tensors: Mapping[str, mx.array], config: Mapping[str, Any], *, quantized: bool
) -> dict[str, mx.array]:
    weights: dict[str, mx.array] = {}
    for name in tensors:
        base, _, part = name.rpartition(".")
        if part == "bias":
            kind = mx.float16 if quantized else mx.float32
            weights[f"{_renamed(base)}.bias"] = tensors[name].astype(kind)
        if part != "weight":
            continue  # handled together with their weight
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
    """Bits of one packed weight; in a Q4_1 file the embedding has 8."""
    packed, groups = tensors[f"{base}.weight"].shape[-1], tensors[f"{base}.scales"].shape[-1]
    return int(packed * 32 // (groups * GROUP_SIZE))


def _quantization(tensors: Mapping[str, mx.array]) -> dict[str, Any]:
    """The config's entry, naming the weights whose bits differ from most."""
    quantisation: dict[str, Any] = {"group_size": GROUP_SIZE, "bits": BITS}
    for name in tensors:
        base = name.removesuffix(".scales")
        if base != name and (bits := _bits(tensors, base)) != BITS:
            quantisation[_renamed(base)] = {"group_size": GROUP_SIZE, "bits": bits}
    return quantisation


def _renamed(base: str) -> str:
    """`blk.3.attn_q` -> `model.layers.3.self_attn.q_proj`; ValueError if it is unknown."""
    match base.split("."):
        case [top] if top in _TOP:
            return _TOP[top]
        case ["blk", layer, inner] if inner in _IN_LAYER:
            return f"model.layers.{layer}.{_IN_LAYER[inner]}"
    raise ValueError(f"it has a tensor {base[:80]!r}, which no model of this kind has")


def _heads(base: str, config: Mapping[str, Any]) -> int:
    """The number of heads that permute the rows of this tensor; 0 if they are in order."""
    if not ARCHITECTURES[config["model_type"]].permuted:
        return 0
    if base.endswith(".attn_q"):
        return int(config["num_attention_heads"])
    return int(config["num_key_value_heads"]) if base.endswith(".attn_k") else 0


def _unpermuted(array: mx.array, heads: int) -> mx.array:
    """Undo GGUF's interleaving of the two halves of each head's rows, made for its RoPE."""
    rows, *rest = array.shape
    halves = array.reshape(heads, rows // heads // 2, 2, *rest)
    return mx.contiguous(halves.swapaxes(1, 2)).reshape(rows, *rest)


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
        to_disk(file.fileno())


def _sync(path: Path) -> None:
    """Flush a file to the disk: a power cut must not leave a renamed folder with empty files."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        to_disk(descriptor)
    finally:
        os.close(descriptor)
