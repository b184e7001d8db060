"""The core alone: PromptCache under mlx-lm's own model and generation.

Run it with `python examples/core.py`, or give another hub id or a folder with a model.
"""

from __future__ import annotations

import sys
from typing import Any

import mlx.core as mx
from mlx_lm import load
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache

from llm_mlx_promptcache import PromptCache

SYSTEM = "You answer in one sentence. "


def answer(cache: PromptCache, model: Any, namespace: str, ids: list[int]) -> list[int]:
    """The model's answer to `ids`, as tokens; computes only what no earlier prompt had."""
    lease = cache.fetch(namespace, ids)
    layers = lease.layers or make_prompt_cache(model)
    rest = mx.array(ids[lease.cached :])
    made = [token for token, _ in generate_step(rest, model, prompt_cache=layers, max_tokens=16)]
    cache.insert(namespace, [*ids, *made], layers)
    print(f"{len(ids)} tokens, {lease.cached} of them reused")
    return made


def main(name: str = "mlx-community/SmolLM2-135M-Instruct") -> None:
    """Answer a prompt, one that continues it, and one that begins like it."""
    model, tokenizer, *_ = load(name)
    cache = PromptCache(memory_bytes="1GB")
    # Prompts of one namespace share rows. With a disk it must be a digest of the weights.
    namespace = name
    first = tokenizer.encode(f"{SYSTEM}What is a bollard?")
    answered = [*first, *answer(cache, model, namespace, first)]
    second = [*answered, *tokenizer.encode(" And a capstan?", add_special_tokens=False)]
    print(tokenizer.decode(answer(cache, model, namespace, second)))
    answer(cache, model, namespace, tokenizer.encode(f"{SYSTEM}Where is Dover?"))


if __name__ == "__main__":
    main(*sys.argv[1:])
