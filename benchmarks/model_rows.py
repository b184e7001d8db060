"""The default model's own keys and values over a page of text, in bfloat16, and what they cost."""

from __future__ import annotations

import time
from typing import NamedTuple

import mlx.core as mx
from harness import ROOT
from mlx_lm.models.cache import KVCache, make_prompt_cache

from llm_mlx_promptcache.models.loading import load_model

_WARMING = 16  # tokens, so that the first call's costs are not among the rest


class ModelRows(NamedTuple):
    """Layers of rows in bfloat16, and the seconds that computing them took in the model's type."""

    layers: list[KVCache]
    seconds: float


def model_rows(count: int) -> ModelRows:
    """The rows of the page's first `count` tokens."""
    loaded = load_model("default")
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    ids = loaded.tokenizer.encode(text)[:count]
    if len(ids) < count:
        raise SystemExit(f"docs/design.md has {len(ids)} tokens, not {count}")
    mx.eval(loaded.model(mx.array([ids[:_WARMING]])))
    computed = make_prompt_cache(loaded.model)
    started = time.perf_counter()
    mx.eval(loaded.model(mx.array([ids]), cache=computed))
    seconds = time.perf_counter() - started
    layers = []
    for layer in computed:
        rows = KVCache()
        rows.update_and_fetch(*(part.astype(mx.bfloat16) for part in layer.state[:2]))
        layers.append(rows)
    mx.eval([layer.state[:2] for layer in layers])
    return ModelRows(layers, seconds)
