"""`llm mlx-cached batch`: many prompts of a file at once; their common start is prefilled once."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from contextlib import closing
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, TypedDict, Unpack

import click

from ..config import load_settings
from ..models.names import NamedModel, resolve
from .batch_lines import BatchDefaults, BatchLine, in_asking_order, read_lines
from .batch_progress import BatchBar, told_once
from .batch_results import ResultOrder, Results, ResultsFile, ShownResults
from .shown import counted, model_option, were

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..llm_adapter.models import AsyncMlxCached
    from .batch_run import BatchCount

_INTERRUPTED: Final = 130
_MOST_AT_ONCE: Final = 64


class _BatchFlags(TypedDict):
    """The flags of a batch on the command line."""

    model: str
    said: tuple[tuple[str, str], ...]
    unordered: bool
    at_once: int
    logs: bool | None


@click.command()
@click.argument("file", type=click.File("rb"))
@model_option
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File for results; default: stdout."
)
@click.option(
    "said",
    "--option",
    type=(str, str),
    multiple=True,
    metavar="NAME VALUE",
    help="An option for all prompts; can be repeated.",
)
@click.option("--unordered", is_flag=True, help="Write results as they come, not in FILE's order.")
@click.option(
    "at_once",
    "-j",
    "--jobs",
    type=click.IntRange(1, _MOST_AT_ONCE),
    default=8,
    show_default=True,
    help="Number of prompts asked at once.",
)
@click.option(
    "logs",
    "--log/--no-log",
    " /-n",
    default=None,
    help="Log the answers or not, whatever llm logs on/off says.",
)
def batch(*, file: IO[bytes], output: Path | None, **asked: Unpack[_BatchFlags]) -> None:
    """Ask many prompts at once: FILE (- is stdin) has a JSON object a line; so do the results.

    A line has "prompt", and may have "system", "schema", "id" and "options". With -o, prompts that
    the file already answers are skipped: after Ctrl-C, or errors, the same command resumes.
    """
    from .batch_run import BatchCount, BatchRun

    named = resolve(asked["model"], load_settings())
    lines = read_lines(file, _name(file), _shared(named, dict(asked["said"])))
    order = ResultOrder.CAME if asked["unordered"] else ResultOrder.INPUT
    count, interrupted = BatchCount(), False
    with closing(_results(file, output, lines, order)) as results:
        left = in_asking_order([line for line in lines if line.id not in results.done])
        run = BatchRun(_model(named), asked["at_once"], logs=_logs(asked["logs"]), count=count)
        try:
            with told_once(), BatchBar(len(left), to_file=output is not None) as bar:
                asyncio.run(run.ask(left, results, bar))
        except KeyboardInterrupt:
            interrupted = True
    _tell(count, len(lines) - len(left))
    if interrupted:
        click.echo(_how_to_go_on(file, output), err=True)
    sys.exit(_INTERRUPTED if interrupted else 1 if count.failed else 0)


def _name(file: IO[bytes]) -> str:
    return "stdin" if file is sys.stdin.buffer else file.name


def _shared(named: NamedModel, said: dict[str, str]) -> BatchDefaults:
    """The defaults for all prompts; ValueError for an unknown option or a value it can't have."""
    from ..llm_adapter.options import checked_options, set_options

    checked_options(said)
    # llm has no options for a hub id or a folder, which are no models of its own.
    held = set_options(named.model_id) if named.model_id else {}
    return BatchDefaults(named.reference, {**held, **said})


def _model(named: NamedModel) -> AsyncMlxCached:
    from ..llm_adapter.models import AsyncMlxCached

    kept = named.registered
    return AsyncMlxCached("" if kept is None else kept.name, named.reference)


def _logs(said: bool | None) -> bool:  # noqa: FBT001 (click's flag, None where nobody said)
    """True if answers are logged: as given, or else as llm's own command would."""
    from llm.cli import logs_on

    return bool(logs_on()) if said is None else said  # type: ignore[no-untyped-call]


def _results(
    file: IO[bytes], output: Path | None, lines: Sequence[BatchLine], order: ResultOrder
) -> Results:
    if output is None:
        return ShownResults(lines, order)
    if output.exists() and os.path.samestat(output.stat(), os.fstat(file.fileno())):
        raise ValueError(f"{output} holds the prompts; give another -o FILE for the results")
    return ResultsFile(output, lines, order)


def _tell(count: BatchCount, before: int) -> None:
    """Print one line about the outcome, and the part of the prompts that was prefilled."""
    there = f"; {before} {were(before)} there already" if before else ""
    failed = f", {count.failed} failed" if count.failed else ""
    tokens = count.cached + count.prefilled
    reused = (
        f"; of {counted(tokens, 'prompt token')} {count.cached} {were(count.cached)} cached,"
        f" {count.prefilled} {were(count.prefilled)} prefilled"
        if tokens
        else ""
    )
    click.echo(f"{count.answered} answered{failed}{there}{reused}", err=True)


def _how_to_go_on(file: IO[bytes], output: Path | None) -> str:
    if output is None:
        return "stopped; with -o FILE the same command would ask only what is left"
    command = shlex.join(["llm", *sys.argv[1:]])
    again = " with the same prompts on stdin" if _name(file) == "stdin" else ""
    return f"stopped; what is left is asked by{again}: {command}"
