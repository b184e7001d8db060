"""The parts of README.md and docs/ that cog writes: help texts and tables, from the code itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from llm_mlx_promptcache.commands import mlx_cached
from llm_mlx_promptcache.commands.bench import machine_line
from llm_mlx_promptcache.llm_adapter.options import MlxCachedOptions

_WIDTH = 80
_DOCS = Path(__file__).resolve().parent
sys.path.append(str(_DOCS.parent / "benchmarks"))
from report_figures import headlines, ran, shown  # noqa: E402 - the benchmarks are in no package

# The README's five rows: a benchmark, and how the headline of it that is shown begins.
_GAINS = (
    ("demo", "first token"),
    ("llm_turns", "`llm -c`"),
    ("agents", "an agent"),
    ("reuse", "tokens prefilled, rows, a restart"),
    ("memory", "bytes held"),
)


def commands_table() -> str:
    """Every command with the first sentence of its help."""
    lines = ["| command | what it does |", "|---|---|"]
    for name, command in _commands():
        lines.append(f"| `llm mlx-cached {name}` | {_escaped(_summary(command))} |")
    return "\n".join(lines)


def help_texts() -> str:
    """Every command's help, as the terminal shows it."""
    return "\n\n".join(
        f"### llm mlx-cached {name}\n\n```\n{_help(name, command)}\n```"
        for name, command in _commands()
    )


def options_table() -> str:
    """Every option of `llm -m mlx-cached -o NAME VALUE`."""
    lines = ["| option | meaning |", "|---|---|"]
    for name, field in MlxCachedOptions.model_fields.items():
        lines.append(f"| `{name}` | {_escaped(field.description or '')} |")
    return "\n".join(lines)


def gains_table() -> str:
    """The README's figures: headlines of the kept benchmarks, each with its command."""
    lines = ["| what | beside | theirs | ours | ratio | command |", "|---|---|--:|--:|--:|---|"]
    for name, begin in _GAINS:
        record = json.loads((_DOCS / "figures" / f"{name}.json").read_text(encoding="utf-8"))
        line = next(h for h in headlines(name, record["figures"]) if h.what.startswith(begin))
        cells = " | ".join((*line[:4], shown(line.ratio)))
        lines.append(f"| {cells} | `make bench ONLY={name}` |")
    return "\n".join(lines)


def printed(name: str) -> str:
    """The output of a benchmark when `make bench` kept it, and where and how it ran."""
    record = json.loads((_DOCS / "figures" / f"{name}.json").read_text(encoding="utf-8"))
    return f"{record['printed']}\n\n{ran(record)}. {machine_line(record['machine'])}"


def _commands() -> list[tuple[str, click.Command]]:
    context = click.Context(mlx_cached)
    names = mlx_cached.list_commands(context)
    found = [(name, mlx_cached.get_command(context, name)) for name in names]
    return [(name, command) for name, command in found if command is not None]


def _summary(command: click.Command) -> str:
    return " ".join((command.help or "").split("\n\n")[0].split())


def _help(name: str, command: click.Command) -> str:
    path = f"llm mlx-cached {name}"
    with click.Context(command, info_name=path, terminal_width=_WIDTH) as context:
        return command.get_help(context)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
