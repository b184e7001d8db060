"""Stalls of an event loop beside `ChatMLXCached`, in its process and with a host.

    python benchmarks/loop_stalls.py [--rounds 3] [--json FILE]

A task of the loop sleeps for a millisecond again and again; a stall is its delay. Each round is a
new process: the first answer, for which the model is loaded, then a long prompt, then the turn
after it. The tokenizer is Qwen3's; the weights are tiny and play an answer, so that MLX's work is
left out. That is measured by itself: matrices on another thread.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from harness import helper
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from langchain_mlx_cached import ChatMLXCached
from llm_mlx_promptcache.config import HOME_VARIABLE

ROUNDS, TURNS = 3, 84
_WORDS = "Station {n} reported {a} ships and {b} trains."
# What is measured, as the table calls it; the first three have no model.
NOTHING, MATRICES, TOKENIZER = "nothing", "a second of MLX's work", "the tokenizer's files are read"
FIRST, LONG, NEXT = "the first answer: the model is loaded", "a long new prompt", "the next turn"
SIDES = {"here": "in this process", "resident": "resident=True"}


async def stalled(work: Coroutine[Any, Any, Any]) -> tuple[float, Any]:
    """The longest stall of the loop beside the work, in milliseconds, and the work's result."""
    longest = 0.0

    async def beat() -> None:
        nonlocal longest
        while True:
            asleep = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - asleep - 0.001)

    beating = asyncio.ensure_future(beat())
    await asyncio.sleep(0.01)
    given = await work
    await asyncio.sleep(0.01)
    beating.cancel()
    return longest * 1e3, given


async def measured(folder: Path, side: str) -> dict[str, float]:
    """Each stall on a loop in this process, and the length of the long prompt."""
    found: dict[str, float] = {}
    if side == "here":
        found[NOTHING], _ = await stalled(asyncio.sleep(1))
        found[MATRICES], _ = await stalled(_on_thread(_matrices))
        found[TOKENIZER], _ = await stalled(_on_thread(lambda: _tokenizer(folder)))
    await FakeListChatModel(responses=["Hi."]).ainvoke("Hi.")  # what LangChain itself imports
    chat = ChatMLXCached(model=str(folder), max_tokens=24, resident=side == "resident")
    history = conversation()
    found[FIRST], _ = await stalled(chat.ainvoke("Hello."))
    found[LONG], answer = await stalled(chat.ainvoke(history))
    found["tokens"] = answer.usage_metadata["input_tokens"]
    found[NEXT], _ = await stalled(chat.ainvoke([*history, answer, HumanMessage("And then?")]))
    return found


def conversation() -> list[BaseMessage]:
    """About 14,000 tokens of turns."""
    made: list[BaseMessage] = []
    for turn in range(TURNS):
        lines = [_WORDS.format(n=turn * 9 + n, a=n * 37 % 101, b=n * 53 % 89) for n in range(9)]
        made += [HumanMessage(" ".join(lines)), AIMessage("Noted: " + lines[0])]
    return [*made, HumanMessage("What did the last station report?")]


async def _on_thread(work: Any) -> None:
    """Run work on a thread of its own, as the engine does."""
    done = threading.Thread(target=work)
    done.start()
    while done.is_alive():
        await asyncio.sleep(0.001)


def _matrices() -> None:
    import mlx.core as mx

    from llm_mlx_promptcache.models.threads import leave_thread

    began, made = time.perf_counter(), mx.random.normal((1024, 1024))
    while time.perf_counter() - began < 1:
        for _ in range(8):
            made = made @ made * 0.01
        mx.eval(made)
    leave_thread()


def _tokenizer(folder: Path) -> None:
    from llm_mlx_promptcache.models.threads import leave_thread
    from llm_mlx_promptcache.models.tokenizer import wrapped_tokenizer

    wrapped_tokenizer(folder)
    leave_thread()


def one_round(folder: Path, side: str) -> dict[str, float]:
    """The same in a new process of a new user."""
    with tempfile.TemporaryDirectory(prefix="mlx-cached-loop-") as home:
        keep = {HOME_VARIABLE: home, "LLM_MLX_CACHED_KEEP": "10m"}
        environment = {**helper("scripted_model").environment(), **keep}
        command = [sys.executable, __file__, "--side", side, "--model", str(folder)]
        try:
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        finally:
            llm = Path(sys.executable).with_name("llm")
            subprocess.run([llm, "mlx-cached", "stop"], env=environment, capture_output=True)
        return dict(json.loads(done.stdout))


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """The least of each longest stall, which no other work on the machine caused, and the worst."""
    tokens = max(one["tokens"] for rounds in found.values() for one in rounds)
    lines = [
        f"| the longest stall of a loop, ms: least (worst) of {len(found['here'])} rounds, beside |"
        f" {' | '.join(SIDES.values())} |",
        "|---|--:|--:|",
    ]
    for what in (NOTHING, MATRICES, TOKENIZER, FIRST, LONG, NEXT):
        cells = [_cell([one[what] for one in found[side] if what in one]) for side in SIDES]
        name = f"{what} ({tokens:,.0f} tokens)" if what == LONG else what
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float]) -> str:
    return f"{min(values):.0f} ({max(values):.0f})" if values else ""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        helper("scripted_model")  # makes the kind known to mlx-lm
        print(json.dumps(asyncio.run(measured(asked.model, asked.side))))
        sys.stdout.flush()
        os._exit(0)  # what would be written behind the answers is no part of this
    with tempfile.TemporaryDirectory(prefix="mlx-cached-loop-") as place:
        folder = helper("scripted_model").scripted_folder(
            Path(place) / "model",
            helper("real_tokenizers").real_tokenizer("qwen3"),
            None,
            {"": "It reported some ships and some trains, as all of them did."},
        )
        found = {side: [one_round(folder, side) for _ in range(asked.rounds)] for side in SIDES}
    print(table(found))
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
