"""Memory of shared prefixes and of one long turn, ours beside mlx-lm's `LRUPromptCache`.

    python benchmarks/memory.py [--json FILE]

Bytes are counted from the arrays that are held, peaks by `mx.get_peak_memory`, and with MLX's pool
of freed buffers after each evaluation, where a pool may grow as on Metal. The model is a random
float32 llama, so that rows are real and nothing is fetched.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import LRUPromptCache, make_prompt_cache
from mlx_lm.models.llama import Model, ModelArgs

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.insertion import Rows
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.engine.chunks import ChunkPlanner, ChunkSizes

VOCAB_SIZE = 500
_POOL = 16 << 30  # as on a Mac: one and a half times its working set


def build(layers: int, vocabulary: int = VOCAB_SIZE) -> Model:
    """A random llama with this many layers."""
    mx.random.seed(1)
    sizes = {"hidden_size": 128, "num_hidden_layers": layers, "intermediate_size": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    model = Model(
        ModelArgs(model_type="llama", rms_norm_eps=1e-5, vocab_size=vocabulary, **sizes, **heads)
    )
    mx.eval(model.parameters())
    return model


def run(model: Model, tokens: list[int], layers: list[Any], step: int = 128) -> None:
    """Prefill tokens in small chunks, so that attention's own scratch space stays small."""
    for start, end in ChunkPlanner(sizes=ChunkSizes.fixed(step)).alone(len(tokens)):
        model(mx.array([tokens[start:end]]), cache=layers)
        mx.eval([layer.state for layer in layers])
        mx.clear_cache()


def words(seed: int, count: int) -> list[int]:
    """Random tokens."""
    return random.Random(seed).choices(range(VOCAB_SIZE), k=count)


def row_bytes(model: Model) -> int:
    """Bytes of one token's rows in all layers."""
    layers = make_prompt_cache(model)
    run(model, [1], layers)
    return sum(a[..., :1, :].nbytes for layer in layers for a in (layer.keys, layer.values))


def shared_prefix(chats: int = 20, prefix: int = 4000, own: int = 200) -> list[dict[str, Any]]:
    """Bytes held for many conversations over one system prompt, in units of the distinct rows."""
    model = build(2)
    system = words(0, prefix)
    ours, theirs = PromptCache("10GB"), LRUPromptCache(max_size=1000)
    for chat in range(chats):
        tokens = system + words(chat + 1, own)
        lease = ours.fetch("m", tokens)
        layers = lease.layers or make_prompt_cache(model)
        run(model, tokens[lease.cached :], layers)
        ours.insert("m", system, layers, "system")
        ours.insert("m", tokens, layers)
        found, rest = theirs.fetch_nearest_cache("m", tokens)
        layers = found or make_prompt_cache(model)
        run(model, rest, layers)
        theirs.insert_cache("m", tokens, layers)
    distinct = (prefix + chats * own) * row_bytes(model)
    held = {"ours": ours.stats()["memory"]["bytes"], "mlx-lm": theirs.nbytes}
    return [{"cache": name, "bytes": size, "ratio": size / distinct} for name, size in held.items()]


def measure(turn: Callable[[], None], own: int) -> tuple[float, float]:
    """Peak memory of a turn over everything beside the conversation, in its own rows.

    First of memory in use, then with the pool of freed buffers.
    """
    gc.collect()
    mx.clear_cache()
    before, evaluate = mx.get_active_memory(), mx.eval
    pool = mx.set_cache_limit(_POOL)
    held = [before]

    def sampled(*arrays: Any) -> None:
        evaluate(*arrays)
        held.append(mx.get_active_memory() + mx.get_cache_memory())

    mx.reset_peak_memory()
    mx.eval = sampled
    try:
        turn()
        sampled()
    finally:
        mx.eval = evaluate
        mx.set_cache_limit(pool)
        mx.clear_cache()
    peaks = mx.get_peak_memory(), max(mx.get_peak_memory(), *held)
    return (peaks[0] - before + own) / own, (peaks[1] - before + own) / own


def long_turn(layers: int, length: int, spans: int = 10, new: int = 64) -> list[dict[str, Any]]:
    """Peak of one turn, fetch to insert, on a long conversation that the disk holds too."""
    model = build(layers)
    tokens = words(0, length + new)
    rows = row_bytes(model)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        cache = PromptCache("10GB", DiskStore(Path(folder), "50GB"))
        fresh = make_prompt_cache(model)
        for end in range(length // spans, length + 1, length // spans):
            run(model, tokens[end - length // spans : end], fresh)
            cache.insert("m", tokens[:end], fresh, "user")
        cache.flush()
        theirs = LRUPromptCache()
        theirs.insert_cache("m", tokens[:length], copy.deepcopy(fresh))
        del fresh

        def ours() -> None:
            lease = cache.fetch("m", tokens, headroom=32, rows=Rows.GIVE)
            taken = lease.layers
            assert taken is not None
            assert lease.cached == length
            run(model, tokens[length:], taken, 32)
            cache.insert("m", tokens, taken, rows=Rows.RETURN)

        def upstream() -> None:
            found, rest = theirs.fetch_nearest_cache("m", tokens)
            run(model, rest, found, 32)
            theirs.insert_cache("m", tokens, found)

        for name, turn in (("ours", ours), ("mlx-lm", upstream)):
            peak, pooled = measure(turn, length * rows)
            what = f"{layers} layers, {length:,} tokens"
            told = {"cache": name, "turn": what, "rows": length * rows}
            results.append({**told, "peak": peak, "with_pool": pooled})
    return results


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    target: Path | None = parser.parse_args().json
    shared = shared_prefix()
    print("Twenty conversations of 200 tokens over one prefix of 4,000\n")
    print("| cache | MB held | times the distinct tokens' rows |\n|---|--:|--:|")
    for row in shared:
        print(f"| {row['cache']} | {row['bytes'] / 1e6:.1f} | {row['ratio']:.3f} |")
    turns = long_turn(8, 8000) + long_turn(24, 4000)
    print("\nPeak memory of one turn on one long conversation, fetch to insert\n")
    print("| conversation | cache | peak, times its own rows | with freed buffers |")
    print("|---|---|--:|--:|")
    for row in turns:
        figures = f"{row['peak']:.3f} | {row['with_pool']:.3f}"
        print(f"| {row['turn']} | {row['cache']} | {figures} |")
    if target is not None:
        target.write_text(json.dumps({"shared": shared, "turns": turns}, indent=1))


if __name__ == "__main__":
    main()
