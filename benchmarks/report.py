"""Every benchmark into one report: docs/benchmarks.md, its pictures, and the figures as JSON.

    python benchmarks/report.py [--short] [--only NAME ...] [--again] [--to FOLDER]

Each benchmark is a script of its own that prints Markdown and takes `--json FILE`. Its output and
figures are kept in FOLDER/figures/NAME.json, with the machine and the versions of that very run;
the page is written from those files alone, so nothing in it is typed by hand.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from report_figures import draw, headlines, ran, shown

from llm_mlx_promptcache.commands.bench import machine, machine_line

HERE = Path(__file__).resolve().parent
_DOCS = HERE.parent / "docs"
_LONGEST = 3600
_LAYER_KINDS = ("llama", "gemma3", "mamba2", "qwen3_next")


class Run(NamedTuple):
    """One script with its arguments, long and short; `lines` of what it prints are shown.

    An argument `$NAME` stands for that variable; where it isn't set, the benchmark is left out.
    """

    name: str
    script: str
    long: tuple[str, ...] = ()
    short: tuple[str, ...] = ()
    lines: int | None = None


KNOWN = (
    Run("demo", "demo.py", (), ("--short",)),
    Run("memory", "memory.py"),
    Run("trie", "trie.py"),
    Run("disk", "disk.py", (), ("--rounds", "3")),
    *(
        Run(
            f"eviction-{trace}",
            "eviction.py",
            ("--synthetic", trace),
            ("--synthetic", trace, "--requests", "2000"),
        )
        for trace in ("mix", "agents", "chats", "rag", "thinking", "drift", "shift")
    ),
    # Traces of real use are somebody else's, and not in the project: docs/eviction.md tells whose.
    Run("eviction-mooncake", "eviction.py", ("$MOONCAKE",), ("$MOONCAKE", "--half", "first")),
    Run(
        "eviction-sharegpt",
        "eviction.py",
        ("--sharegpt", "$SHAREGPT", "--tried", "--capacities", "500,1000,5000,10000"),
        ("--sharegpt", "$SHAREGPT", "--half", "first"),
    ),
    Run(
        "eviction-sharegpt-one-tier",
        "eviction.py",
        ("--sharegpt", "$SHAREGPT", "--one-tier", "--capacities", "500,1000,5000,10000"),
        ("--sharegpt", "$SHAREGPT", "--one-tier", "--half", "first"),
    ),
    Run("agents", "agents.py", (), ("--steps", "3")),
    Run("reuse", "reuse.py", (), ("--models", "rows")),
    Run("batch", "batch.py", (), ("--rounds", "1", "--tokens", "24")),
    Run("startup", "startup.py", (), ("--rounds", "5")),
    Run("host", "host.py", (), ("--rounds", "3")),
    Run("loop_stalls", "loop_stalls.py", (), ("--rounds", "1")),
    # llm-mlx wants an environment of its own; the script tells how it is made.
    Run("llm_turns", "llm_turns.py", ("--llm-mlx", "$LLM_MLX"), ("--llm-mlx", "$LLM_MLX")),
    # Their whole tables are pages of their own.
    Run("matrix", "matrix.py", (), _LAYER_KINDS, lines=1),
    Run("conformance", "conformance.py", (), ("Qwen3", "Llama 3.1"), lines=1),
    Run("templates", "templates.py", (), ("--every", "10")),
    Run("learning", "learning.py", ("--every", "12"), ("--every", "60")),
)


def main() -> int:
    """Run the benchmarks asked for, and write the page; the status says whether all ended well."""
    options = _options()
    figures: Path = options.to / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    asked = [r for r in runs() if r.name in options.only or not options.only]
    wanted = [] if options.again else [one for one in asked if _can_run(one)]
    failed = [one.name for one in wanted if not _measured(one, options, figures)]
    found = kept(figures)
    for name, record in found.items():
        draw(name, record["figures"], figures / f"{name}.svg")
    (options.to / "benchmarks.md").write_text(page(found, figures), encoding="utf-8")
    print(f"bench: {options.to / 'benchmarks.md'} has {len(found)} benchmarks", file=sys.stderr)
    if failed:
        print(f"bench: failed, or missed a target: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


def _options() -> argparse.Namespace:
    names = [one.name for one in runs()]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="fewer rounds and smaller inputs")
    parser.add_argument(
        "--only", nargs="+", choices=names, default=[], metavar="NAME", help=str(names)
    )
    parser.add_argument("--again", action="store_true", help="run nothing; page from kept figures")
    parser.add_argument("--to", type=Path, default=_DOCS, metavar="FOLDER")
    return parser.parse_args()


def runs() -> list[Run]:
    """All benchmarks: the known ones, and every other script here that can be run by itself."""
    known = {one.script for one in KNOWN}
    others = sorted(
        p.name for p in HERE.glob("*.py") if p.name not in known and p != Path(__file__)
    )
    here = [run for run in KNOWN if (HERE / run.script).exists()]
    return [*here, *(_other(name) for name in others if _is_script(HERE / name))]


def _can_run(run: Run) -> bool:
    """True if everything that its arguments need is set; says what is missing."""
    missing = [word[1:] for word in run.long if word[:1] == "$" and word[1:] not in os.environ]
    for name in missing:
        told = f"bench: {run.name} is left out; set {name}, see benchmarks/{run.script}"
        print(told, file=sys.stderr)
    return not missing


def _is_script(path: Path) -> bool:
    return '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8")


def _other(script: str) -> Run:
    short = ("--short",) if '"--short"' in (HERE / script).read_text(encoding="utf-8") else ()
    return Run(script.removesuffix(".py"), script, (), short)


def _measured(run: Run, options: argparse.Namespace, figures: Path) -> bool:
    """Run one benchmark and keep what it found, misses too; True if it reached all its targets."""
    arguments = run.short if options.short else run.long
    print(f"bench: {run.name}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "figures.json"
        given = [os.environ[word[1:]] if word[:1] == "$" else word for word in arguments]
        source = (HERE / run.script).read_text(encoding="utf-8")
        if gives_figures := '"--json"' in source:
            given += ["--json", str(target)]
        if not options.short:
            given += _own_page(source, options.to)
        command = [sys.executable, str(HERE / run.script), *given]
        began, load = time.perf_counter(), os.getloadavg()[0]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=_LONGEST)
        missed = done.returncode == 1 and gives_figures and target.exists()
        if target.exists() != gives_figures or (done.returncode and not missed):
            print(f"bench: {run.name} ended with status {done.returncode}", file=sys.stderr)
            print(f"bench: its older figures stay; it printed:\n{done.stdout}", file=sys.stderr)
            return False
        record = {
            "command": " ".join(["python", f"benchmarks/{run.script}", *arguments]),
            "what": _what(HERE / run.script),
            "when": datetime.now(UTC).date().isoformat(),
            "seconds": round(time.perf_counter() - began),
            "load": round(load, 1),
            "machine": machine(),
            "printed": _shown(done.stdout, run.lines),
            "figures": json.loads(target.read_text()) if gives_figures else None,
        }
    text = json.dumps(record, indent=1, ensure_ascii=False)
    (figures / f"{run.name}.json").write_text(f"{text}\n", encoding="utf-8")
    return not missed


def _own_page(source: str, folder: Path) -> list[str]:
    """The option with which a script also writes its own page: no second run, no other figures."""
    if '"--keep"' in source:
        return ["--keep", str(folder)]
    return ["--write"] if '"--write"' in source and folder == _DOCS else []


def _what(script: Path) -> str:
    """The first sentence of a script's docstring."""
    text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or script.stem
    return " ".join(text.split("\n\n")[0].split())


def _shown(printed: str, lines: int | None) -> str:
    return "\n".join(printed.strip().splitlines()[:lines])


def kept(figures: Path) -> dict[str, dict[str, Any]]:
    """The kept records, in the order of the benchmarks."""
    order = [one.name for one in runs()]
    found = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in figures.glob("*.json")}
    return {name: found[name] for name in order if name in found}


def page(found: dict[str, dict[str, Any]], figures: Path) -> str:
    """The report: the ratios in one table, then each benchmark with its command and machine."""
    parts = [_HEAD, "| what | beside | theirs | ours | ratio |\n|---|---|--:|--:|--:|"]
    for name, record in found.items():
        for line in headlines(name, record["figures"]):
            cells = f"[{line.what}](#{name})", *line[1:4], shown(line.ratio)
            parts[-1] += f"\n| {' | '.join(cells)} |"
    for name, record in found.items():
        picture = f"![{record['what']}](figures/{name}.svg)"
        parts += [
            f"## {name}",
            record["what"],
            *([picture] if (figures / f"{name}.svg").exists() else []),
            record["printed"],
            f"{ran(record)} ([figures](figures/{name}.json)).",
            machine_line(record["machine"]),
        ]
    return "\n\n".join(parts) + "\n"


_HEAD = """\
# Benchmarks

Written by `make bench` (`make bench SHORT=1` takes fewer rounds and smaller inputs) from the
files in `figures/`; nothing on this page is typed by hand. A ratio over 1 says how many times
better ours is, under 1 how much worse. Each benchmark tells its own machine: compare ratios, which
are measured side by side in one run, rather than seconds. On a machine that does other work
meanwhile, single figures move."""


if __name__ == "__main__":
    sys.exit(main())
