"""Promises held to this machine's device: waits, rows, memory and `doctor`, in a few minutes.

    python benchmarks/device.py [waits] [rows] [memory] [doctor] [--model default] [--json FILE]

For a GPU, which few of our tests run on: a Mac's, or NVIDIA's with MLX's package for it
(`pip install mlx-cuda-13`). Counts and rows are taken from tiny random models, memory and `doctor`
from `--model`. The exit status says whether all held; the table is to be pasted into an issue.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import pytest
from harness import helper
from memory import long_turn

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.identity import Identity
from llm_mlx_promptcache.cache.layers.device_memory import (
    POOL_OF_COPIES,
    POOL_OF_STEPS,
    pooled,
)
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.commands.bench import machine, machine_line
from llm_mlx_promptcache.commands.doctor_diagnosis import Diagnosis, Health
from llm_mlx_promptcache.commands.doctor_model import diagnoses
from llm_mlx_promptcache.config import DEFAULT_MODEL, HOME_VARIABLE, KEEP_VARIABLE
from llm_mlx_promptcache.engine.measurements import (
    BatchBesideAlone,
    Measurement,
    NotInTime,
    NotKept,
)
from llm_mlx_promptcache.engine.one_machine import scheduler_here
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.engine.scheduler import Scheduler
from llm_mlx_promptcache.engine.self_test import SelfTest
from llm_mlx_promptcache.models.chat_tokenizer import TemplateTokenizer
from llm_mlx_promptcache.models.loading import LoadedModel, load_model
from llm_mlx_promptcache.models.threads import leave_thread

crowds, families, readers, tiny_models, waits_of = map(
    helper, ("crowds", "families", "readers", "tiny_models", "waits")
)

KINDS = ("llama", "gemma3_text", "mamba2")  # rows, windows, state
DTYPES = (mx.float32, mx.float16, mx.bfloat16)
PREFIX, LAYERS, LENGTH = 1000, 8, 4000
MOST_ROWS = 1.25  # of a conversation's rows: the peak of a turn, but for the pool of copies
LEFT = 1 << 20  # bytes of freed buffers at rest
MEASURED = (
    *("speed", "warm beside cold", "warm beside one go"),
    *("restored beside memory", "together beside alone"),
)
_HIT = {True: "a hit", False: "no hit"}


class Line(NamedTuple):
    """A row of the table: a thing looked at, the finding, its bar, and whether it held."""

    part: str
    what: str
    found: str
    bar: str
    held: bool


class Machine(NamedTuple):
    """The name of the model that is run, and a folder for all that is written."""

    model: str
    folder: Path


def scheduler_over(loaded: LoadedModel, cache: PromptCache) -> Scheduler:
    """A model that this thread runs, whose chunks are as long as a prompt."""
    identity = Identity("device", "device")
    return scheduler_here(loaded, identity, cache, planner=readers.planner_of(2048))


def waits(asked: Machine) -> Iterator[Line]:
    """Evaluations before the first token: cold, warm, with a disk, in another process's place."""
    folder = tiny_models.write_tiny_llama(asked.folder / "waits", layers=waits_of.LAYERS)
    loaded, store = load_model(str(folder)), asked.folder / "store"

    def counted(cache: PromptCache, messages: list[Any], *names: str) -> Iterator[Line]:
        talk = waits_of.Talk(scheduler_over(loaded, cache), counts, messages)
        for name in names:
            first, _, usage = talk.turn()
            evaluations, most = first.get("eval", 0), waits_of.MOST_WAITS[name]
            hit, asked_for = usage.cached > 0, name != "cold"
            found, bar = f"{evaluations}, {_HIT[hit]}", f"1 to {most}, {_HIT[asked_for]}"
            held = 0 < evaluations <= most and hit == asked_for
            yield Line("waits", name, found, bar, held)

    with pytest.MonkeyPatch.context() as patch:
        waits_of.in_all_groups(patch)
        counts = waits_of.Counted(patch)
        yield from counted(PromptCache("100MB"), waits_of.chat(21), "cold", "warm")
        said = waits_of.chat(21)
        cache = PromptCache("100MB", DiskStore(store))
        yield from counted(cache, said, "cold", "warm, with a disk")
        yield from counted(PromptCache("100MB", DiskStore(store)), said, "after a restart")


def rows(asked: Machine) -> Iterator[Line]:
    """The self-test of each kind of layer in each dtype: equal bits, restored, in batches."""
    base = load_model(str(tiny_models.write_tiny_llama(asked.folder / "rows", context=256)))
    for kind in KINDS:
        for dtype in DTYPES:
            model = families.BY_NAME[kind].with_words(base.config["vocab_size"]).build()
            model.set_dtype(dtype)
            loaded = dataclasses.replace(base, model=model)
            name = f"{kind}, {str(dtype).removeprefix('mlx.core.')}"
            test = SelfTest(loaded, asked.folder / f"cache of {name}", float("inf"))
            found = {line.what: line for one in test.measurements() for line in measured(one)}
            test.close()
            for what in MEASURED:
                yield _line("rows", f"{name}: {what}", found.get(what))


def measured(one: Measurement) -> Iterator[Diagnosis]:
    """Its lines; none where it says that a part was left out, which is no finding."""
    never = isinstance(one, BatchBesideAlone) and one.why
    return iter(()) if never or isinstance(one, NotKept | NotInTime) else diagnoses(one)


def _line(part: str, what: str, line: Diagnosis | None) -> Line:
    """A line of `doctor`'s as one of ours; None is one that is not there."""
    if line is None:
        return Line(part, what, "not measured", "not wrong", held=False)
    return Line(part, what, line.found, "not wrong", line.health is not Health.WRONG)


def memory(asked: Machine) -> Iterator[Line]:
    """Freed buffers between steps and at rest, and the peak of a turn on a long conversation."""
    loaded = load_model(asked.model)
    scheduler = scheduler_over(loaded, PromptCache("1GB"))
    crowd = crowds.crowd(TemplateTokenizer(loaded.tokenizer), 2, PREFIX)
    for messages in crowd:
        scheduler.add(readers.Reader(GenerationRequest(messages, max_tokens=48)))
    most = 0
    while scheduler.busy:
        scheduler.step()
        most = max(most, pooled())
    bar = f"at most {POOL_OF_STEPS / 1e6:.0f} MB"
    yield Line("memory", "pool between steps", f"{most / 1e6:.1f} MB", bar, most <= POOL_OF_STEPS)
    scheduler.settle(last=True)
    left = pooled()
    yield Line("memory", "pool at rest", f"{left / 1e6:.1f} MB", "at most 1 MB", left <= LEFT)
    scheduler.unload()
    for turn in long_turn(LAYERS, LENGTH):
        if turn["cache"] == "ours":
            ratio, most = turn["with_pool"], MOST_ROWS + POOL_OF_COPIES / turn["rows"]
            found = f"{ratio:.3f} times its rows, freed buffers with them"
            bar = f"at most {most:.2f}"
            yield Line("memory", f"a turn, {turn['turn']}", found, bar, ratio <= most)


def doctor(asked: Machine) -> Iterator[Line]:
    """The lines of `llm mlx-cached doctor`, in a home of its own."""
    own = {HOME_VARIABLE: str(asked.folder / "home"), KEEP_VARIABLE: "0"}
    llm = Path(sys.executable).with_name("llm")
    done = subprocess.run(
        [llm, "mlx-cached", "doctor", "--json", "-m", asked.model],
        env={**os.environ, **own},
        stdout=subprocess.PIPE,
        check=False,
    )
    told = [
        Diagnosis(line["part"], line["what"], line["found"], Health(line["health"]))
        for line in json.loads(done.stdout or "{}").get("lines", ())
    ]
    for line in told:
        yield _line("doctor", f"{line.part}: {line.what}", line)
    for what in MEASURED:
        if ("model", what) not in {(line.part, line.what) for line in told}:
            yield _line("doctor", f"model: {what}", None)
    ended = done.returncode == 0
    yield Line("doctor", "its exit status", str(done.returncode), "0", ended)


PARTS: dict[str, Callable[[Machine], Iterator[Line]]] = {
    "waits": waits,
    "rows": rows,
    "memory": memory,
    "doctor": doctor,
}


def all_of(part: str, asked: Machine) -> Iterator[Line]:
    """The lines of a part; what it raises is one of them, so that the other parts follow."""
    try:
        yield from PARTS[part](asked)
    except Exception as error:
        traceback.print_exc()
        yield Line(
            part, "all of it", f"{type(error).__name__}: {error}", "raises nothing", held=False
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 where a line did not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="only these")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="for memory and doctor")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args(arguments)
    found, began = machine(), time.monotonic()
    print(machine_line(found), "\n\n| part | what | found | bar | held |\n|---|---|---|---|---|")
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as folder:
        for part in given.parts or PARTS:
            for line in all_of(part, Machine(given.model, Path(folder))):
                lines.append(line)
                held = "yes" if line.held else "NO"
                print("|", " | ".join((*line[:-1], held)), "|", flush=True)
    wrong = sum(not line.held for line in lines)
    print(
        f"\n{len(lines)} lines in {time.monotonic() - began:.0f} s, of which {wrong} did not hold"
    )
    if given.json is not None:
        told = {"machine": found, "lines": [line._asdict() for line in lines]}
        given.json.write_text(json.dumps(told, indent=1))
    return int(wrong > 0)


if __name__ == "__main__":
    status = main()
    leave_thread()
    sys.exit(status)
