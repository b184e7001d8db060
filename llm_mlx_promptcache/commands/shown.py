"""What a command shows: JSON, a table, or a line; rich on a terminal, plain lines in a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

from ..config import MODEL_ID
from ..models.errors import ModelLoadError
from ..models.names import resolve

model_option = click.option(
    "-m", "--model", default=MODEL_ID, help="A registered name, an alias, a hub id or a folder."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def show_json(data: Any) -> None:
    """Print data that programs read."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal; in a pipe a line for each row, its cells apart by tabs."""
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(map(printable, row)))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))  # never read as rich's markup
    Console().print(table)


def show_tree(title: str, lines: Iterable[tuple[int, str]]) -> None:
    """A tree under its title: each line with its depth, from 0."""
    title, lines = printable(title), [(depth, printable(line)) for depth, line in lines]
    if not sys.stdout.isatty():
        click.echo(title)
        for depth, line in lines:
            click.echo("  " * (depth + 1) + line)
        return
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    branches = [Tree(Text(title, style="bold"))]
    for depth, line in lines:
        del branches[depth + 1 :]
        branches.append(branches[depth].add(Text(line)))
    Console().print(branches[0])


def label_of(model: str) -> str:
    """What the store calls a model: of one that is gone, or of a namespace, the name itself."""
    try:
        return resolve(model).reference
    except ModelLoadError:
        return model


def quoted(text: str, limit: int = 60) -> str:
    """Text of a conversation as one line that no terminal can take for commands."""
    cut = text if len(text) <= limit else text[: limit - 1] + "\u2026"
    return printable(json.dumps(cut, ensure_ascii=False))


def printable(text: str) -> str:
    """Text without anything that a terminal obeys: a model's name comes from a file's head."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
