"""Text wrapped to a width: broken between words, and inside one only where a reader would."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from rich.cells import cell_len, chop_cells

_WORD: Final = re.compile(r"(?:[\d.]+ [kMGT]?B\b|\S+)\s*")  # a size is one
# The places where a word that is too wide is broken: after a folder of a path, then within a name.
_PARTS: Final = (re.compile(r"[^/]*/+|[^/]+"), re.compile(r"[^@_-]*[@_-]+|[^@_-]+"))
_GAP: Final = 2  # between columns
_NARROW: Final = 10  # columns this narrow are never made narrower: sizes, counts


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` cells; a wider word is broken after a / or @ _ - in it."""
    lines = [""]
    for piece in _pieces(text, width):
        if cell_len((lines[-1] + piece).rstrip()) > width and lines[-1]:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def in_lines(parts: Sequence[str], width: int) -> list[str]:
    """Parts, separated by two spaces, in lines of at most `width` cells; no part is broken."""
    lines: list[str] = []
    for part in parts:
        if lines and cell_len(lines[-1]) + _GAP + cell_len(part) <= width:
            lines[-1] += " " * _GAP + part
        else:
            lines.append(part)
    return lines


def cut(text: str, width: int) -> str:
    """Text cut to `width`, with a mark at its end if it was wider."""
    return text if cell_len(text) <= width else chop_cells(text, max(width, 2) - 1)[0] + "\u2026"


def column_widths(rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """The widths of a table's columns, its head among the rows, so that it fits if it can.

    The widest columns are narrowed first.
    """
    natural = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    room = width - _GAP * (len(natural) - 1)
    most = max(natural)
    while most > _NARROW and sum(min(one, most) for one in natural) > room:
        most -= 1
    return [min(one, most) for one in natural]


def _pieces(text: str, width: int) -> Iterator[str]:
    """The pieces between which a line can be broken."""
    for word in _WORD.findall(text.lstrip()):
        yield from _broken(word, width, _PARTS)


def _broken(word: str, width: int, marks: Sequence[re.Pattern[str]]) -> Iterator[str]:
    """A word if it fits, else its parts: split after the first of `marks`, then after the next."""
    if cell_len(word.rstrip()) <= width:
        yield word
    elif not marks:
        yield from chop_cells(word, width)
    else:
        for part in marks[0].findall(word):
            yield from _broken(part, width, marks[1:])
