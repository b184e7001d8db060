"""The meaning of a seed of the conversations' fuzzer, and the comparison of its answers."""

import dataclasses
import functools
import gc
import random
import threading
from pathlib import Path
from typing import Any, NamedTuple

import conversations
import families
import mlx.core as mx

from llm_mlx_promptcache.engine.events import Finished
from llm_mlx_promptcache.models.loading import load_model

# Layers can be quantised where a head has whole groups of 32.
QUANTISED = ("llama", "qwen3", "gemma3_text", "qwen3_next", "olmo3", "ministral3")
# One can't be cached; one's own answers depend on where chunks end.
NAMES = [f.name for f in families.FAMILIES if f.name != "deepseek_v41" and not f.chunked]
CONTEXT = 3000


class Run(NamedTuple):
    """The run that a seed means: a family, its budgets, and the number of steps."""

    seed: int
    family: str
    heads: int  # 32 wide where keys and values are quantised, 0: as the family has them
    memory: str
    disk: str
    steps: int

    @property
    def identity(self) -> str:
        """The model's: who knows it may replay what it said."""
        return f"{self.family}-{self.heads}"

    @classmethod
    def of(cls, seed: int, names: Any = NAMES) -> "Run":
        """The run of a seed."""
        rng = random.Random(seed)
        name = rng.choice(names)
        heads = 32 if name in QUANTISED and rng.random() < 0.6 else 0
        memory = rng.choice(["100KB", "1MB", "100MB", "100MB"])
        disk = rng.choice(["", "300KB", "3MB", "1GB", "1GB"])
        return cls(seed, name, heads, memory, disk, rng.randint(12, 30))


@functools.cache
def base(folder: str, role: str) -> Any:
    """The tiny tokenizer's model, once for each thread that uses it."""
    return load_model(folder)


def loaded(run: Run, folder: str, role: str) -> Any:
    """The family's model over the tiny tokenizer."""
    tiny = base(folder, role)
    family = families.BY_NAME[run.family]
    own = {**family.own, "vocab_size": tiny.config["vocab_size"]}
    # What lies beyond an embedding is any memory, so all that a family has are large enough.
    own |= dict.fromkeys(("max_position_embeddings", "n_positions"), CONTEXT)
    own |= dict.fromkeys(
        {"vocab_size_per_layer_input", "num_vocab"} & own.keys(), own["vocab_size"]
    )
    if run.heads:
        own["head_dim"] = run.heads
    model = dataclasses.replace(family, own=own).build()
    return conversations.loaded_as(tiny, model, CONTEXT)


def difference(warm: Finished, cold: Finished, bound: float) -> str:
    """The difference of two answers beyond rounding; empty if there is none."""
    for at, (one, other) in enumerate(zip(warm.logprobs, cold.logprobs, strict=False)):
        apart = abs(one.chosen.logprob - other.chosen.logprob)
        if one.chosen.id != other.chosen.id:
            best, second = (entry.logprob for entry in other.top[:2])
            gap = best - second
            return "" if gap <= bound else f"token {at} differs, with a gap of {gap:.2e} when cold"
        if apart > bound:
            return f"the logits at token {at} differ by {apart:.2e}"
    if warm.ids != cold.ids:
        return f"{len(warm.ids)} tokens, {len(cold.ids)} when cold"
    return ""


class Held(NamedTuple):
    """Resources of a process that a run must give back."""

    threads: int
    descriptors: int
    memory: int

    @classmethod
    def now(cls) -> "Held":
        gc.collect()
        descriptors = sum(1 for _ in Path("/dev/fd").iterdir())
        return cls(threading.active_count(), descriptors, mx.get_active_memory())
