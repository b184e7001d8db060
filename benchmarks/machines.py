"""The cost of a token for a model over 2, 4 and 8 Macs, on paper: nothing here ran on a Mac.

Counted: mlx-lm's own models are made of published configs, cut as `llm mlx-cached serve` cuts them
(no weight is ever computed: MLX is lazy), and asked for a token; what they would send, and the
bytes of their part, are what this adds up. Assumed: published bandwidths and latencies, which
options change, and that weights are read as fast as memory gives them. Left out: attention over
what came before, sampling, and waits for the slowest Mac. So these are lower bounds.

    python benchmarks/machines.py [--memory 819] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

_GB = 1e9
_PROMPT = 1000  # tokens
SIZES = (1, 2, 4, 8)
_ATTENTION: dict[str, Any] = {"rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": False}

# As their publishers' config.json have them; weights of 4 bits in groups of 64.
MODELS: dict[str, dict[str, Any]] = {
    "Qwen3-32B": {
        **_ATTENTION,
        "model_type": "qwen3",
        "hidden_size": 5120,
        "num_hidden_layers": 64,
        "intermediate_size": 25600,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
    },
    "Llama-3.3-70B": {
        **_ATTENTION,
        "model_type": "llama",
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "intermediate_size": 28672,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
    },
    "Qwen3-235B-A22B": {
        **_ATTENTION,
        "model_type": "qwen3_moe",
        "hidden_size": 4096,
        "num_hidden_layers": 94,
        "intermediate_size": 12288,
        "moe_intermediate_size": 1536,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
    },
}


class Network(NamedTuple):
    """The carrier of the collectives: GB/s one way, microseconds a message, whether all to all."""

    name: str
    bandwidth: float
    latency: float
    mesh: bool

    def seconds(self, nbytes: float, ranks: int) -> float:
        """One sum over all ranks: a ring passes parts round twice, a mesh sends to all at once."""
        if ranks == 1:
            return 0.0
        rate = self.bandwidth * _GB
        if self.mesh:
            return self.latency * 1e-6 + nbytes / rate
        steps = 2 * (ranks - 1)
        return steps * (self.latency * 1e-6 + nbytes / ranks / rate)


# 10 Gigabit Ethernet; Thunderbolt 5 has 80 Gb/s, of which reports see 7.4 GB/s. TCP takes about
# 300 microseconds a message there, and RDMA under 50 (Apple's loan to J. Geerling, December 2025).
NETWORKS = (
    Network("ring, 10 GbE", 1.25, 300, mesh=False),
    Network("ring, Thunderbolt 5", 7.4, 300, mesh=False),
    Network("jaccl, Thunderbolt 5", 7.4, 50, mesh=True),
    Network("jaccl, if 5 µs", 7.4, 5, mesh=True),
)


class Part(NamedTuple):
    """The bytes that one rank holds and reads for a token, and the sizes of its shared sums."""

    held: int
    read: float
    sums: tuple[int, ...]
    prompt_sums: tuple[int, ...]


class Place(NamedTuple):
    """A group as mlx-lm needs it to cut a model."""

    ranks: int

    def rank(self) -> int:
        """The first one's part."""
        return 0

    def size(self) -> int:
        """The number of ranks."""
        return self.ranks


@contextmanager
def counted() -> Iterator[list[int]]:
    """The bytes of each sum that a model would ask for meanwhile."""
    sums: list[int] = []

    def all_sum(x: mx.array, **_: Any) -> mx.array:
        sums.append(x.nbytes)
        return x

    with mock.patch.object(mx.distributed, "all_sum", all_sum):
        yield sums


def part_of(config: dict[str, Any], ranks: int) -> Part | str:
    """One rank's part of a model, or why there is none."""
    heads = config["num_key_value_heads"]
    if heads % ranks:
        return f"{heads} heads of keys and values are not for {ranks}"
    family = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    model = family.Model(family.ModelArgs.from_dict(config))
    model.set_dtype(mx.bfloat16)
    nn.quantize(model, group_size=64, bits=4)
    if ranks > 1:
        model.shard(Place(ranks))
    found = []
    for tokens in (1, _PROMPT):
        with counted() as sums:
            model(mx.zeros((1, tokens), mx.int32), cache=make_prompt_cache(model))
        found.append(tuple(sums))
    arrays = dict(tree_flatten(model.parameters()))
    held = sum(array.nbytes for array in arrays.values())
    return Part(held, sum(_read(config, *each) for each in arrays.items()), found[0], found[1])


def _read(config: dict[str, Any], name: str, array: mx.array) -> float:
    """Bytes of an array that one token reads: of experts those that are asked, of rows one."""
    if "embed_tokens" in name:
        return array.nbytes / array.shape[0]
    if ".switch_mlp." in name:
        return array.nbytes * config["num_experts_per_tok"] / config["num_experts"]
    return array.nbytes


def rows(memory: float) -> Iterator[dict[str, Any]]:
    """A row for each model, number of Macs and network."""
    for name, config in MODELS.items():
        for ranks in SIZES:
            part = part_of(config, ranks)
            if isinstance(part, str):
                yield {"model": name, "macs": ranks, "why": part}
                continue
            reading = part.read / (memory * _GB)
            for network in NETWORKS if ranks > 1 else (Network("alone", 1, 0, mesh=True),):
                sending = sum(network.seconds(one, ranks) for one in part.sums)
                prompt = sum(network.seconds(one, ranks) for one in part.prompt_sums)
                yield {
                    "model": name,
                    "macs": ranks,
                    "network": network.name,
                    "held_gb": part.held / _GB,
                    "sums": len(part.sums),
                    "kb_a_token": sum(part.sums) / 1e3,
                    "reading_ms": 1e3 * reading,
                    "sending_ms": 1e3 * sending,
                    "tokens_a_second": 1 / (reading + sending),
                    "prompt_ms": 1e3 * prompt,
                }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--memory", type=float, default=819.0, help="GB/s; an M3 Ultra's")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = list(rows(options.memory))
    print(
        "| model, 4 bits | Macs | GB each | network | sums | kB a token | reading, ms | sending, ms"
        " | tokens/s at most | 1000 tokens of a prompt, sending, ms |\n"
        "|---|--:|--:|---|--:|--:|--:|--:|--:|--:|"
    )
    for row in found:
        if "why" in row:
            print(f"| {row['model']} | {row['macs']} | | {row['why']} | | | | | | |")
            continue
        print(
            f"| {row['model']} | {row['macs']} | {row['held_gb']:.1f} | {row['network']}"
            f" | {row['sums']} | {row['kb_a_token']:.0f} | {row['reading_ms']:.1f}"
            f" | {row['sending_ms']:.1f} | {row['tokens_a_second']:.0f} | {row['prompt_ms']:.0f} |"
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
