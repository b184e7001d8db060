"""The waits of requests for one another: short chats beside a long prompt, and the cost of a pass.

    python benchmarks/fairness.py [curve] [beside] [--tokens 10000] [--json FILE]

The real default model. `curve` prints the cost of a pass by its tokens and by those before it:
tests/engine/test_fairness.py plays the scheduler on it. `beside` asks chats of eight tokens, one
after another, while a long prompt is prefilled.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from batch import engine_of, seconds
from harness import helper

from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.config import DEFAULT_MODEL
from llm_mlx_promptcache.engine.chunks import ChunkPlanner
from llm_mlx_promptcache.engine.engine import Engine
from llm_mlx_promptcache.engine.events import Finished
from llm_mlx_promptcache.engine.forward import prefill
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.models.chat_tokenizer import TemplateTokenizer
from llm_mlx_promptcache.models.layers import make_layers
from llm_mlx_promptcache.models.loading import LoadedModel, load_model

crowds = helper("crowds")
WIDTHS = (1, 4, 8, 16, 32, 64, 128, 256)
BEFORE = (0, 1000, 3000)
ANSWER = 8
ROUNDS = 5


def pass_seconds(model: Any, layers: list[Any], count: int) -> float:
    """The quickest of a few passes over `count` tokens; the layers are as before."""
    took = []
    for _ in range(ROUNDS):
        took.append(seconds(lambda: prefill(model, layers, [7] * count)))
        for layer in layers:
            layer.trim(count)
    return min(took)


def curve(loaded: LoadedModel) -> dict[str, Any]:
    """A table of passes, and the four numbers that fit it: a pass, a token, and for each before."""
    measured: dict[int, list[float]] = {}
    layers, start = make_layers(loaded.model), 0
    for before in BEFORE:
        for first, end in ChunkPlanner().alone(before - start):
            prefill(loaded.model, layers, [5] * (end - first))
        start = before
        measured[before] = [pass_seconds(loaded.model, layers, count) for count in WIDTHS]
    print("Milliseconds of a pass, by its tokens (columns) and those before it (rows)\n")
    print(f"| before | {' | '.join(map(str, WIDTHS))} |\n|--:|{'--:|' * len(WIDTHS)}")
    for before, row in measured.items():
        print(f"| {before:,} | {' | '.join(f'{1000 * each:.0f}' for each in row)} |")
    found = fitted(measured)
    names = ("PASS", "TOKEN", "BEFORE", "PAIR")
    print("\n" + ", ".join(f"{name} {each:.3g}" for name, each in zip(names, found, strict=True)))
    return {"widths": WIDTHS, "seconds": measured, "fitted": found}


def fitted(measured: dict[int, list[float]]) -> list[float]:
    """Seconds of a pass, a token, one before it, and a pair of the two; relative errors count."""
    points = [
        (count, before, took)
        for before, row in measured.items()
        for count, took in zip(WIDTHS, row, strict=True)
    ]
    terms = np.array([[1, count, before, before * count] for count, before, _ in points], float)
    took = np.array([took for _, _, took in points])
    found, *_ = np.linalg.lstsq(terms / took[:, None], np.ones(len(took)), rcond=None)
    return [float(each) for each in found]


def beside(loaded: LoadedModel, tokens: int) -> dict[str, Any]:
    """Chats alone, the long prompt alone, and both together."""
    tokenizer = TemplateTokenizer(loaded.tokenizer)
    [long] = crowds.crowd(tokenizer, 1, tokens)
    with engine_of(loaded, disk=False) as engine:
        one(engine, (Message("user", "Hello."),))
        chats_alone = [chat(engine, at) for at in range(ROUNDS)]
        one(engine, long)  # the speeds of its chunks are known from now on
        long_alone = one(engine, long)
        told: list[float] = []
        thread = threading.Thread(target=lambda: told.append(one(engine, long)))
        chats: list[float] = []
        thread.start()
        while thread.is_alive():
            time.sleep(long_alone / 20)  # somebody asks now and then
            took = chat(engine, len(chats))
            if thread.is_alive():
                chats.append(took)
        thread.join()
    alone = statistics.median(chats_alone)
    print("\n| | alone | together | times |\n|---|--:|--:|--:|")
    print(f"| {tokens:,} tokens, {len(chats)} chats beside them {row(long_alone, told[0])}")
    print(f"| a chat of {ANSWER} tokens, median {row(alone, statistics.median(chats))}")
    print(f"| the slowest of them {row(alone, max(chats))}")
    return {
        "tokens": tokens,
        "chat alone": chats_alone,
        "long alone": long_alone,
        "chats beside": chats,
        "long beside": told[0],
    }


def row(alone: float, together: float) -> str:
    """The rest of a table's line."""
    return f"| {alone:.2f} s | {together:.2f} s | {together / alone:.2f} |"


def chat(engine: Engine, number: int) -> float:
    """Seconds of a short question and its answer."""
    return one(engine, (Message("user", f"What comes after {number}, please?"),), ANSWER)


def one(engine: Engine, messages: tuple[Message, ...], answer: int = 1) -> float:
    """Seconds of one request, with nothing reused."""
    request = GenerationRequest(messages, answer, use_cache=False)
    started = time.perf_counter()
    *_, last = engine.generate(request)
    assert isinstance(last, Finished)
    return time.perf_counter() - started


def main() -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=["curve", "beside", []], help="only these")
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    parts = options.parts or ["curve", "beside"]
    loaded = load_model(DEFAULT_MODEL)
    # No longer context is needed to wait for one: nobody reads what is said behind it.
    loaded = dataclasses.replace(loaded, context_length=None)
    found: dict[str, Any] = {"device": str(mx.default_device())}
    if "curve" in parts:
        found["curve"] = curve(loaded)
    if "beside" in parts:
        found["beside"] = beside(loaded, options.tokens)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
