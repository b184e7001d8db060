"""The plugin's cost before the model's first work: `llm --help`, and the imports of a prompt.

Prints tables. The first two compare `llm --help` and `llm models list` without plugins and with
this one, in turns: wall time, and processor time, which other processes disturb less. The last
asks under `-X importtime`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

from llm_mlx_promptcache.config import HOME_VARIABLE, data_folder

ROUNDS = 20
PACKAGE = "llm-mlx-promptcache"
_LLM = [sys.executable, "-c", "from llm.cli import cli; cli()"]
_MOST = 1.05
_SHOWN = 12
_NOTES = """\
What is left is not ours to leave out. `openai` is llm's own plugin, imported for every command.
mlx-lm imports `transformers` for its tokenizer, and `transformers` reads the source of all of its
models when it is imported, and again for its tokenizers (1,648 files each time by `cProfile`), to
list what they export. Patching that inside users' processes is no way to save it. All of it happens
on the engine's thread. `llm --help` imports two files of ours, which import only click and llm
(`tests/frontends/test_startup.py` counts them)."""


class Run(NamedTuple):
    """Seconds of one process: by the clock, and of the processor."""

    wall: float
    processor: float


class Pair(NamedTuple):
    """Runs of one command without plugins, and with this one."""

    without: list[Run]
    with_it: list[Run]

    def ratio(self) -> float:
        """The ratio of processor times: the wall clock also counts other work on the machine."""
        before, after = (median(run.processor for run in runs) for runs in self)
        return after / before


class Imports(NamedTuple):
    """Seconds that the modules of one package took to import, without what they import."""

    package: str
    seconds: float


def main() -> int:
    """Measure and print; status 1 if the plugin costs `llm --help` more than a twentieth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of `llm --help`, each way")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlx-cached-startup-") as name:
        home = Path(name)
        (home / "mlx").mkdir()
        (home / "mlx" / "data").symlink_to(data_folder())
        pair = _pair(home, asked.rounds, "--help")
        models = _pair(home, max(1, asked.rounds // 4), "models", "list")
        tables = [_table("--help", pair), _table("models list", models), _prompt_table(home)]
    print("\n\n".join([_machine(), *tables, _NOTES]))
    if asked.json is not None:
        found = {"llm --help": pair, "llm models list": models}
        rows = {name: {**runs._asdict(), "ratio": runs.ratio()} for name, runs in found.items()}
        asked.json.write_text(json.dumps(rows, indent=1))
    return 0 if pair.ratio() <= _MOST else 1


def _pair(home: Path, rounds: int, *arguments: str) -> Pair:
    """An `llm` command both ways in turns, after one of each unmeasured."""
    pair = Pair([], [])
    for number in range(rounds + 1):
        for runs, plugins in zip(pair, ("", PACKAGE), strict=True):
            run = _run(home, plugins, arguments)
            if number:
                runs.append(run)
    return pair


def _run(home: Path, plugins: str, arguments: Sequence[str]) -> Run:
    environment = {**_environment(home), "LLM_LOAD_PLUGINS": plugins}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([*_LLM, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return Run(wall, user + system)


def _environment(home: Path) -> dict[str, str]:
    return {**os.environ, "LLM_USER_PATH": str(home / "llm"), HOME_VARIABLE: str(home / "mlx")}


def _table(command: str, pair: Pair) -> str:
    lines = [
        f"`llm {command}`, median of {len(pair.without)} each, in turns:",
        "",
        "| | wall, s | processor, s |",
        "|---|---|---|",
    ]
    for name, runs in (("without plugins", pair.without), ("with this one", pair.with_it)):
        wall, processor = (median(run[field] for run in runs) for field in (0, 1))
        lines.append(f"| {name} | {wall:.3f} | {processor:.3f} |")
    walls = [median(run.wall for run in runs) for runs in pair]
    return "\n".join([*lines, f"| ratio | {walls[1] / walls[0]:.3f} | {pair.ratio():.3f} |"])


def _prompt_table(home: Path) -> str:
    """The parts of the time of `llm -m mlx-cached hi` until the model's first work."""
    options = ["-o", "max_tokens", "1"]
    command = [sys.executable, "-X", "importtime", *_LLM[1:], "-m", "mlx-cached", "hi", *options]
    subprocess.run(command, env=_environment(home), check=True, capture_output=True)  # fetched once
    started = time.perf_counter()
    done = subprocess.run(
        command, env=_environment(home), check=True, capture_output=True, text=True
    )
    wall = time.perf_counter() - started
    logs = subprocess.run(
        [*_LLM, "logs", "list", "--json", "-n", "1"],
        env=_environment(home),
        check=True,
        capture_output=True,
        text=True,
    )
    (entry,) = json.loads(logs.stdout)
    told = entry["response_json"]
    imports = _by_package(done.stderr.splitlines())
    lines = [
        "`llm -m mlx-cached hi -o max_tokens 1`, the second time, under `-X importtime`:",
        "",
        "| what | s |",
        "|---|---|",
        f"| the whole process | {wall:.2f} |",
        f"| loading the model, its imports included | {told['load_seconds']:.2f} |",
        f"| from the prompt to its first token | {told['first_token_seconds']:.2f} |",
        f"| all imports | {sum(found.seconds for found in imports):.2f} |",
    ]
    lines += [f"| · of `{found.package}` | {found.seconds:.2f} |" for found in imports[:_SHOWN]]
    return "\n".join(lines)


def _by_package(trace: Iterable[str]) -> list[Imports]:
    """Seconds by package out of `-X importtime`, each module's own time; the slowest first."""
    sums: dict[str, float] = {}
    for line in trace:
        parts = line.removeprefix("import time:").split("|")
        if line.startswith("import time:") and parts[0].strip().isdigit():
            package = parts[2].strip().partition(".")[0]
            sums[package] = sums.get(package, 0.0) + int(parts[0]) / 1e6
    found = [Imports(package, seconds) for package, seconds in sums.items()]
    return sorted(found, key=lambda one: -one.seconds)


def _machine() -> str:
    names = ("llm", "mlx", "mlx-lm", "transformers", "huggingface_hub")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors,"
        f" load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}, {versions}."
    )


if __name__ == "__main__":
    sys.exit(main())
