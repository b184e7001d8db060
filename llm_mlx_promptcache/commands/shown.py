"""Output of commands: JSON, a table, or a line; rich on a terminal, plain lines in a pipe."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, NamedTuple

import click

from ..config import MODEL_ID
from ..models.errors import ModelLoadError
from ..models.names import resolve
from ..models.served import model_behind

_NUMBER: Final = re.compile(r"[\d.]+( [kMGT]?B)?")
_INDENT: Final = 4  # cells for each depth of a tree
_HANGING: Final = 2
_LEAST: Final = 16  # cells for a text, however narrow the terminal

model_option = click.option(
    "-m", "--model", default=MODEL_ID, help="A registered name, an alias, a hub id or a folder."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def show_json(data: Any) -> None:
    """Print data that programs read; signs that this output has no bytes for as JSON's escapes."""
    text = json.dumps(data, indent=2, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # another character set, or a file's name that is no text
        text = json.dumps(data, indent=2)
    click.echo(text)


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal; in a pipe a line for each row, with cells separated by tabs.

    On a terminal empty columns are left out.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from .wrapping import column_widths, wrapped

    console = Console()
    filled = [index for index in range(len(columns)) if any(row[index] for row in rows)]
    kept = [[row[index] for index in filled] for row in (columns, *rows)]
    widths = column_widths(kept, console.width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(kept[0]):
        numbers = all(_NUMBER.fullmatch(row[index]) for row in kept[1:])
        table.add_column(column, no_wrap=True, justify="right" if numbers else "left")
    for row in kept[1:]:
        cells = ["\n".join(wrapped(*cell)) for cell in zip(row, widths, strict=True)]
        table.add_row(*map(Text, cells))  # never read as rich's markup
    console.print(table)


class TreeLine(NamedTuple):
    """A line of a tree: its depth from 0, its parts, and a text that may be cut."""

    depth: int
    parts: Sequence[str]
    text: str = ""


def show_tree(title: str, lines: Iterable[TreeLine]) -> None:
    """Show a tree under its title."""
    title = printable(title)
    if not sys.stdout.isatty():
        click.echo(title)
        for depth, parts, text in lines:
            whole = "  ".join([*parts, text] if text else parts)
            click.echo("  " * (depth + 1) + printable(whole))
        return
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    from .wrapping import wrapped

    console = Console()
    branches = [Tree(Text("\n".join(wrapped(title, console.width)), style="bold"))]
    for line in lines:
        del branches[line.depth + 1 :]
        shown = _fitted(line, console.width - _INDENT * (line.depth + 1))
        branches.append(branches[line.depth].add(Text(shown, no_wrap=True)))
    console.print(branches[0])


def show_line(text: str) -> None:
    """Show a line; on a terminal broken between words, with the rest indented."""
    if not sys.stdout.isatty():
        click.echo(text)
        return
    from .wrapping import wrapped

    indent = " " * (len(text) - len(text.lstrip()))
    width = max(shutil.get_terminal_size().columns - len(indent) - _HANGING, _LEAST)
    first, *others = wrapped(text, width)
    click.echo(indent + first)
    for line in others:
        click.echo(f"{indent}{' ' * _HANGING}{line}")


def _fitted(line: TreeLine, width: int) -> str:
    """A line's parts wrapped to fit, with as much of its text as fits behind them, or below."""
    from .wrapping import cut, in_lines

    shown = in_lines([printable(part) for part in line.parts], width)
    if line.text:
        room = width - len(shown[-1]) - 2
        if room >= _LEAST:
            shown[-1] += "  " + cut(printable(line.text), room)
        else:
            shown.append(cut(printable(line.text), max(width, _LEAST)))
    return "\n".join(shown)


def label_of(model: str) -> str:
    """The store's name for a model; for one that is gone, or a namespace, the name itself."""
    try:
        return model_behind(resolve(model).reference)
    except ModelLoadError:
        return model


def stored_name(model: str, labels: Collection[str], namespaces: Iterable[str]) -> str:
    """The cache's name for a model, or the beginning of a namespace; ValueError.

    `labels` are the models that have something there, `namespaces` theirs.
    """
    from ..cache.disk.listing import ID_LENGTH

    for name in (label_of(model), model):
        if name in labels:
            return name
    if len(model) >= ID_LENGTH and any(name.startswith(model) for name in namespaces):
        return model
    raise ValueError(
        f"nothing is stored of {model!r}; llm mlx-cached stats lists the models that have something"
    )


def counted(count: int, noun: str, form: str = "") -> str:
    """A number of things, in a form of numbers: "1 span", "2 spans"."""
    return f"{count:{form}} {noun}{'s' * (count != 1)}"


def were(count: int) -> str:
    """The verb behind a number."""
    return "was" if count == 1 else "were"


def quoted(text: str, limit: int = 60) -> str:
    """Text of a conversation as one line, made safe for a terminal."""
    cut = text if len(text) <= limit else text[: limit - 1] + "\u2026"
    return printable(json.dumps(cut, ensure_ascii=False))


def printable(text: str) -> str:
    """Text without control characters for a terminal: a model's name comes from a file's head."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
