"""Law 1 over mlx-lm's models, as a table: `python benchmarks/matrix.py [--write] [MODEL ...]`.

Each row is a tiny random model: a path is kept, left at many points, resumed, and the answers are
held against cold runs, in memory and after a restart from the disk.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from harness import ROOT, helper

from llm_mlx_promptcache.cache.disk import DiskStore
from llm_mlx_promptcache.cache.layers import NotCached, cut_anywhere, layout_of, layout_to_json
from llm_mlx_promptcache.cache.prompt_cache import PromptCache

HEAD = """\
# Models

What `python benchmarks/matrix.py --write` found: each of mlx-lm's models built small, with random
weights, its prompts resumed from the cache at many points, in memory and after a restart, and the
answers held against runs without a cache (float32, logits within 1e-4, greedy tokens equal).

*Anywhere*: a prompt is resumed at the very token where it parts from what is kept. *At
checkpoints*: at the last message end before that token, or where a whole window of rows is held.

"""


class Row(NamedTuple):
    """What the table says of a model."""

    model: str
    kinds: str
    resumable: str
    passed: str


def main() -> int:
    """Print the table; the exit status says whether all that is cached passed."""
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
        (ROOT / "docs" / "models.md").write_text(HEAD + table, encoding="utf-8")
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
        return Row(family.name, "", f"not cached: {error}", "")
    kinds = " + ".join(f"{count} {_kind(kind)}" for count, kind in _counted(layout))
    resumable = "anywhere" if cut_anywhere(layout) else "at checkpoints"
    return Row(family.name, kinds, resumable, _passed(trials, trial))


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
    """How many layers of each kind, in the order of their first ones."""
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
    lines = [f"{passed} of {len(cached)} cached models passed.", ""]
    lines += ["| model | kinds of layer | resumable | passed (worst logit) |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += [f"| {name} | | not tried: {why} | |" for name, why in sorted(left_out.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
