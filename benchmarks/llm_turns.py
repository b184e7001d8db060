"""The next question of a conversation of 2,000 tokens: `llm -c` with this plugin and with llm-mlx.

Both run the same weights (the default model) in fresh processes on this machine, each in its own
environment. The figure is the time from the start of the process to the first bytes of the answer;
the model's time to its first token is shown apart from the start-up (Python, llm, the imports, the
weights).

    python benchmarks/llm_turns.py --llm-mlx /path/to/a/venv/with/llm-mlx

That environment is made by:
    python -m venv V && V/bin/pip install llm-mlx==0.4 'llm<0.32' httpx 'mlx[cpu]'
(with llm 0.36 llm-mlx 0.4 forgets the conversation, and so answers sooner than it should).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llm_mlx_promptcache.config import data_folder
from llm_mlx_promptcache.models.default_model import ensure_default_model

FIRST = "Summarise what you were told in one sentence."
NEXT = ("Which part of it matters most?", "And which least?", "What was left out?")
ANSWER = ("-o", "max_tokens", "16", "-o", "temperature", "0")


class Plugin(NamedTuple):
    """One of the plugins: its name, its `llm`, the model's id there, and its environment."""

    name: str
    command: str
    model: str
    environment: dict[str, str]


class Turn(NamedTuple):
    """One turn: tokens of its prompt, seconds to the first bytes, and the model's part of them."""

    tokens: int
    wall: float
    model: float


def main() -> None:
    """Ask both, one after the other in each turn, and print their times."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--llm-mlx", required=True, metavar="VENV", help="where llm-mlx is")
    parser.add_argument("--words", type=int, default=1000, help="words of the system prompt")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = list(_plugins(Path(folder), Path(asked.llm_mlx)))
        found: dict[str, list[Turn]] = {ours.name: [], theirs.name: []}
        for plugin in (ours, theirs):
            _ask(plugin, ["-m", plugin.model, "-s", _text(asked.words), FIRST])
        for number in range(asked.turns):
            for plugin in (ours, theirs):
                turn = _ask(plugin, ["-c", NEXT[number % len(NEXT)]])
                print(f"{plugin.name}: {turn}", file=sys.stderr)
                found[plugin.name].append(turn)
    _print(found)
    if asked.json is not None:
        rows = {name: [turn._asdict() for turn in turns] for name, turns in found.items()}
        asked.json.write_text(json.dumps(rows, indent=1))


def _plugins(folder: Path, venv: Path) -> Iterator[Plugin]:
    weights = ensure_default_model(data_folder())
    home = folder / "ours"
    (home / "mlx").mkdir(parents=True)
    (home / "mlx" / "data").symlink_to(data_folder())
    own = {"LLM_USER_PATH": str(home / "llm"), "LLM_MLX_CACHED_HOME": str(home / "mlx")}
    command = str(Path(sys.executable).with_name("llm"))
    yield Plugin("llm-mlx-promptcache", command, "mlx-cached", {**os.environ, **own})
    user = folder / "theirs"
    user.mkdir()
    (user / "llm-mlx.json").write_text(json.dumps({str(weights): {"aliases": []}}))
    other = {**os.environ, "LLM_USER_PATH": str(user)}
    yield Plugin("llm-mlx", str(venv / "bin" / "llm"), str(weights), other)


def _text(words: int) -> str:
    """A text of this many words in which no line is like another."""
    lines = (
        f"Station {n} reported {n * 37 % 101} ships and {n * 53 % 89} trains." for n in range(words)
    )
    text = " ".join(lines).split()[:words]
    return " ".join(text)


def _ask(plugin: Plugin, arguments: list[str]) -> Turn:
    """One question in a fresh process; llm's log is read afterwards."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [plugin.command, *arguments, *ANSWER],
        env=plugin.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 1)
    first = time.perf_counter() - started
    process.stdout.read()
    if process.wait():
        raise SystemExit(f"{plugin.name} failed; its error is above")
    entry = _logged(plugin)
    return Turn(entry["input_tokens"], first, _model_seconds(entry))


def _logged(plugin: Plugin) -> dict[str, Any]:
    told = subprocess.run(
        [plugin.command, "logs", "list", "--json", "-n", "1"],
        env=plugin.environment,
        capture_output=True,
        check=True,
    )
    [entry] = json.loads(told.stdout)
    return dict(entry)


def _model_seconds(entry: dict[str, Any]) -> float:
    """From the prompt to its first token, by each plugin's own account."""
    told = entry["response_json"]
    told = json.loads(told) if isinstance(told, str) else told
    if "first_token_seconds" in told:
        return float(told["first_token_seconds"])
    return float(entry["input_tokens"] / told["prompt_tps"])


def _print(found: dict[str, list[Turn]]) -> None:
    print("| | prompt tokens | first bytes (s) | of it the model (s) | start-up (s) |")
    print("|---|---:|---:|---:|---:|")
    walls = {}
    for name, turns in found.items():
        wall, model = (
            statistics.median(getattr(turn, key) for turn in turns) for key in ("wall", "model")
        )
        tokens = statistics.median(turn.tokens for turn in turns)
        walls[name] = wall
        print(f"| {name} | {tokens:.0f} | {wall:.2f} | {model:.2f} | {wall - model:.2f} |")
    ours, theirs = walls.values()
    print(
        f"\nMedians of {len(NEXT)} turns. First bytes after {ours / theirs:.0%} of llm-mlx's time."
    )


if __name__ == "__main__":
    main()
