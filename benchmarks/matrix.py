"""Law 1 over mlx-lm's models, as a table: `python benchmarks/matrix.py [--write] [MODEL ...]`.

Each row is a tiny random model: a path is kept, left at many points, resumed, and the answers are
compared with cold runs, in memory and after a restart from the disk. Then it is tried in batches,
by the engine's own trial and by mlx-lm's BatchGenerator.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from harness import ROOT, helper, write_part
from mlx_lm.generate import BatchGenerator, generate_step

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.layers.layout import (
    NotCached,
    cut_anywhere,
    layout_of,
    layout_to_json,
)
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.engine.batch_layers import BatchForm
from llm_mlx_promptcache.engine.batch_probe import prove
from llm_mlx_promptcache.models.errors import one_line

PAGE = ROOT / "docs" / "models.md"


class Row(NamedTuple):
    """A model's row of the table."""

    model: str
    kinds: str
    resumable: str
    passed: str
    batched: str
    mlx_lm: str


def main() -> int:
    """Print the table; the exit status says whether everything cached passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="only these")
    parser.add_argument("--write", action="store_true", help="write docs/models.md")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    asked = parser.parse_args()
    trials = helper("trials")
    found = [f for f in trials.families.FAMILIES if f.name in asked.models or not asked.models]
    rows = [_row(trials, family) for family in sorted(found, key=lambda f: f.name.lower())]
    table = _table(rows, {} if asked.models else trials.families.LEFT_OUT)
    sys.stdout.write(table)
    if asked.write:
        write_part(PAGE, "layers", "benchmarks/matrix.py --write", table)
    if asked.json is not None:
        asked.json.write_text(json.dumps([row._asdict() for row in rows], indent=1))
    return any(row.passed.startswith("no") for row in rows)


def _row(trials: Any, family: Any) -> Row:
    trial = trials.Trial(family)
    layers = trial.layers()
    trial.run(trials.PATH, layers)
    try:
        layout = layout_of(layers)
    except NotCached as error:
        return Row(family.name, "", f"not cached: {error}", "", *_batched(trial.model))
    kinds = " + ".join(f"{count} {_kind(kind)}" for count, kind in _counted(layout))
    resumable = "anywhere" if cut_anywhere(layout) else "at checkpoints"
    return Row(family.name, kinds, resumable, _passed(trials, trial), *_batched(trial.model))


def _batched(model: Any) -> tuple[str, str]:
    """The engine's trial of a model, and the outcome of mlx-lm's own batches."""
    verdict = prove(model)
    if verdict.form is BatchForm.ALONE:
        return f"no: {verdict.why}", _mlx_lm(model)
    own = ", with a mask of its own" if verdict.form is BatchForm.GROUPED else ""
    return f"yes{own}", _mlx_lm(model)


def _mlx_lm(model: Any, lengths: Sequence[int] = (3, 11, 25), count: int = 8) -> str:
    """Compare tokens and logits of mlx-lm's BatchGenerator and generate_step; returns a verdict."""
    draw = random.Random(5)
    prompts = [[draw.randrange(100) for _ in range(length)] for length in lengths]
    try:
        together = _generated(BatchGenerator(model, max_tokens=count), prompts)
    except Exception as error:
        return f"fails: {one_line(error, 80)}"
    worst = 0.0
    for prompt, answers in zip(prompts, together, strict=True):
        alone = generate_step(mx.array(prompt), model, max_tokens=count)
        for (token, found), (right, logprobs) in zip(answers, alone, strict=True):
            apart = mx.where(found == logprobs, 0.0, mx.abs(found - logprobs)).max().item()
            worst = max(worst, apart)
            if token != right:
                break
    return "same" if worst <= 1e-3 else f"differs ({worst:.0e})"


def _generated(generator: Any, prompts: list[list[int]]) -> list[list[tuple[int, mx.array]]]:
    """Each prompt's tokens and their log probabilities, all generated together."""
    found: dict[int, list[tuple[int, mx.array]]] = {uid: [] for uid in generator.insert(prompts)}
    left = set(found)
    while left:
        for response in generator.next_generated():
            mx.eval(response.logprobs)
            found[response.uid].append((response.token, response.logprobs))
            if response.finish_reason is not None:
                left.discard(response.uid)
    return list(found.values())


def _passed(trials: Any, trial: Any) -> str:
    try:
        with tempfile.TemporaryDirectory() as folder:
            store = DiskStore(Path(folder))
            cache = PromptCache("100MB", store)
            trial.keep(cache, trials.PATH)
            trials.points_hold(trial, cache)
            cache.flush()
            trials.points_hold(trial, PromptCache("100MB", store))
    except AssertionError as error:
        return f"no: {error}"
    condition = f", on equal chunks: {trial.family.chunked}" if trial.family.chunked else ""
    return f"yes ({trial.worst:.0e}){condition}"


def _counted(layout: Any) -> list[tuple[int, Any]]:
    """The number of layers of each kind, in the order of their first ones."""
    counts: dict[str, tuple[int, Any]] = {}
    for count, kind in layout_to_json(layout):
        held = counts.get(repr(kind), (0, kind))[0]
        counts[repr(kind)] = (held + count, kind)
    return list(counts.values())


def _kind(kind: Any) -> str:
    name, settings = kind
    if name == "list":
        return f"list ({', '.join(_kind(part) for part in settings)})"
    size = settings.get("size")
    return name if size is None else f"{name} of {size}"


def _table(rows: list[Row], left_out: dict[str, str]) -> str:
    cached = [row for row in rows if row.passed]
    passed = sum(row.passed.startswith("yes") for row in cached)
    batched = sum(row.batched.startswith("yes") for row in rows)
    counted = (
        f"{passed} of {len(cached)} cached models passed; {batched} of {len(rows)} in batches."
    )
    columns = ["model", "kinds of layer", "resumable", "passed (worst logit)"]
    columns += ["in batches", "mlx-lm's batches"]
    lines = [counted, "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += [f"| {name} | | not tried: {why} | | | |" for name, why in sorted(left_out.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
