"""One conversation, each turn its own `llm` process, with the cache and without it.

Prints a table and draws `build/demo.svg` from the same figures. `--keep FOLDER` also writes both
there. Run it with `make demo`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from llm_mlx_promptcache.commands.bench import machine, machine_line
from llm_mlx_promptcache.config import HOME_VARIABLE, data_folder

SLOW = 20  # tokens a second of prefill, under which the long form would take too long
LONG, SHORT = 5, 3
SYSTEM = (Path(__file__).parent / "demo_system.txt").read_text()
QUESTIONS = (
    "When does the library open on Saturday?",
    "How many books may a guest borrow?",
    "What does it cost to bring one back late?",
    "Where are the maps kept?",
    "Who may use the reading room in the tower?",
)
_LLM = str(Path(sys.executable).with_name("llm"))
_MAX_TOKENS = "32"
_TIMED = ("load", "first_token", "decode")


@dataclass(frozen=True)
class Turn:
    """One answer: the tokens of its prompt, its seconds by part, and its text."""

    prompt: int
    cached: int
    prefilled: int
    first_token: float
    load: float
    start_up: float
    answer: str


def main() -> int:
    """Run both conversations and print how they compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="also write the table and picture there")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--short", action="store_true", help="the short form on any machine")
    options = parser.parse_args()
    keep: Path | None = options.keep
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mlx-cached-demo-") as folder:
        conversation = Conversation(Path(folder))
        _say("asking one short question first, to fetch the model once and to see how fast it is")
        probe = conversation.ask("probe", "Say yes.", system="Answer yes.", cache=False)
        speed = probe.prefilled / probe.first_token
        turns, system, form = _form(speed, options.short)
        _say(form)
        rows = []
        for number, question in enumerate(QUESTIONS[:turns], 1):
            _say(f"turn {number} of {turns}: {question}")
            warm = conversation.ask("warm", question, system=system, cache=True)
            cold = conversation.ask("cold", question, system=system, cache=False)
            rows.append((warm, cold))
    report = _report(rows, form, time.perf_counter() - started)
    print(report)
    build = Path("build")
    build.mkdir(exist_ok=True)
    _draw(rows, build / "demo.svg")
    _say(f"the picture is in {build / 'demo.svg'}")
    if options.json is not None:
        figures = [{"cached": asdict(warm), "without": asdict(cold)} for warm, cold in rows]
        options.json.write_text(json.dumps(figures, indent=1))
    if keep is not None:
        (keep / "demo.md").write_text(f"# `make demo`, kept from one run\n\n{report}\n")
        shutil.copy(build / "demo.svg", keep / "demo.svg")
    return 0 if all(warm.answer == cold.answer for warm, cold in rows) else 1


class Conversation:
    """Conversations by name, each with llm's folder of its own, over one fresh cache."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "home").mkdir()
        # The model is the user's own copy; only the cache starts empty.
        (folder / "home" / "data").symlink_to(data_folder())
        self._turns: dict[str, int] = {}

    def ask(self, name: str, question: str, *, system: str, cache: bool) -> Turn:
        """The next turn of a conversation, in a process of its own."""
        user = self._folder / name
        user.mkdir(exist_ok=True)
        environment = {**os.environ, "LLM_USER_PATH": str(user)}
        environment[HOME_VARIABLE] = str(self._folder / "home")
        command = [_LLM, "prompt", question, "-o", "max_tokens", _MAX_TOKENS]
        command += ["-o", "cache", str(cache).lower()]
        command += ["-c"] if name in self._turns else ["-m", "mlx-cached", "-s", system]
        # The first process may fetch the model, and says so; later ones say that answers are cut.
        errors = subprocess.PIPE if self._turns else None
        self._turns[name] = self._turns.get(name, 0) + 1
        started = time.perf_counter()
        done = subprocess.run(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=errors, text=True
        )
        process = time.perf_counter() - started
        if done.returncode:
            raise SystemExit(done.stderr or done.returncode)
        logs = [_LLM, "logs", "list", "--json", "-n", "1"]
        found = subprocess.run(logs, env=environment, check=True, capture_output=True, text=True)
        (entry,) = json.loads(found.stdout)
        details, timings = json.loads(entry["token_details"]), entry["response_json"]
        return Turn(
            prompt=entry["input_tokens"],
            cached=details["cached"],
            prefilled=details["prefilled"],
            first_token=timings["first_token_seconds"],
            load=timings["load_seconds"],
            # What is left of the process: Python, imports, llm, and the wait for the disk.
            start_up=process - sum(timings[f"{part}_seconds"] for part in _TIMED),
            answer=entry["response"],
        )


def _form(speed: float, short: bool) -> tuple[int, str, str]:
    """The number of turns, the system prompt, and the reason."""
    if speed >= SLOW and not short:
        return LONG, SYSTEM, f"{LONG} turns over the whole system prompt"
    why = "" if short else f": this machine prefills only {speed:.0f} tokens a second"
    form = f"{SHORT} turns over a quarter of the system prompt (the short form{why})"
    return SHORT, SYSTEM[: len(SYSTEM) // 4], form


def _report(rows: list[tuple[Turn, Turn]], form: str, seconds: float) -> str:
    """A Markdown table of both conversations, the answers, and what ran where."""
    lines = [
        f"{form}, each turn a process of its own.",
        "",
        "| turn | prompt | from the cache | prefilled | first token, cached | first token, without"
        " | ratio |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for number, (warm, cold) in enumerate(rows, 1):
        lines.append(
            f"| {number} | {warm.prompt} | {warm.cached} | {warm.prefilled}"
            f" | {warm.first_token:.2f} s | {cold.first_token:.2f} s"
            f" | {cold.first_token / warm.first_token:.1f} |"
        )
    warm, cold = rows[-1]
    load, start_up = (
        median(getattr(turn, part) for row in rows for turn in row) for part in ("load", "start_up")
    )
    lines += [
        "",
        f"In turn {len(rows)} the first token comes {cold.first_token / warm.first_token:.1f} times"
        f" sooner after the prompt, model loaded: {warm.first_token:.2f} s against"
        f" {cold.first_token:.2f} s. Beside that each process took {start_up:.1f} s to start and"
        f" end and {load:.1f} s to load the model (medians), with the cache and without.",
        "",
    ]
    for number, (warm, cold) in enumerate(rows, 1):
        same = "the same without the cache" if warm.answer == cold.answer else "NOT THE SAME"
        lines.append(f"{number}. {' '.join(warm.answer.split())} ({same})")
    lines += ["", f"{machine_line(machine())} {seconds:.0f} s in all."]
    return "\n".join(lines)


def _draw(rows: list[tuple[Turn, Turn]], target: Path) -> None:
    """Seconds to the first token by turn, with the cache and without, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.4), layout="constrained")
    turns = range(1, len(rows) + 1)
    width = 0.38
    for shift, label, colour, values in (
        (-width / 2, "without the cache", "#b8b8b8", [cold.first_token for _, cold in rows]),
        (width / 2, "mlx-cached", "#0a7d5a", [warm.first_token for warm, _ in rows]),
    ):
        bars = axes.bar([t + shift for t in turns], values, width, label=label, color=colour)
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=9)
    axes.set_xticks(list(turns), [f"turn {t}\n{rows[t - 1][0].prompt} tokens" for t in turns])
    axes.set_ylabel("seconds to the first token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(target)
    pyplot.close(figure)


def _say(text: str) -> None:
    print(f"demo: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
