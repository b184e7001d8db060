"""Shared code of benchmarks: the tests' own helpers, and the parts of pages that they write."""

from __future__ import annotations

import importlib
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MISSED = "**missed**"


def helper(name: str) -> Any:
    """A module beside the tests, found where pytest finds it."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for folder in settings["tool"]["pytest"]["ini_options"]["pythonpath"]:
        if str(ROOT / folder) not in sys.path:
            sys.path.append(str(ROOT / folder))
    return importlib.import_module(name)


def write_part(page: Path, part: str, command: str, text: str) -> None:
    """Put `text` between the page's two comments of that name; an error where they aren't there."""
    start, end = f"<!-- {part}: {command} -->\n", f"<!-- end of {part} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{page} has no part between '{start.strip()}' and '{end}'")
    page.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")


def at_most(value: float, bar: float | None) -> str:
    """A table's cell of the target of a figure, with a mark if it is missed."""
    if bar is None:
        return ""
    return f"{bar:g}" if value <= bar else f"{bar:g}, {MISSED}"
