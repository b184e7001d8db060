"""The cost of prompts, each written in several ways: `python benchmarks/recipes.py [--write]`.

Tokens of the prompts and those that were prefilled, for each way of tests/frontends/recipe_ways.py.
The counts follow from a tokenizer, a template and the texts, so the model is one that plays its
answers, with Qwen3's tokenizer and template; `--model` takes any other one, with its own answers.
`--write` writes the tables of docs/recipes.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import ROOT, helper, write_part

from langchain_mlx_cached import ChatMLXCached
from llm_mlx_promptcache.config import HOME_VARIABLE, data_folder
from llm_mlx_promptcache.engine.pool import close_engines

PAGE = ROOT / "docs" / "recipes.md"
SUMMED = "call by call"
HEAD = """\
| way | calls | tokens of prompts | prefilled | share |
|---|--:|--:|--:|--:|
"""


def main() -> int:
    """Print the tables; the exit status says whether each recipe is the best of its ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/recipes.md")
    parser.add_argument("--json", type=Path, help="also write each call's tokens there")
    parser.add_argument("--model", help="a model to ask: default, a folder or a hub id")
    asked = parser.parse_args()
    if asked.write and asked.model:
        parser.error("--write is for the played model, whose figures are the same everywhere")
    with chat_model(asked.model) as chat:
        found = {
            one: helper("recipe_ways").measured(one, chat) for one in helper("recipe_ways").WAYS
        }
    tables = {**tables_of(found), SUMMED: summed_up(found)}
    for recipe, table in tables.items():
        print(f"{recipe}\n\n{table}")
        if asked.write:
            write_part(PAGE, recipe, "benchmarks/recipes.py --write", table)
    if asked.json is not None:
        told = [{"recipe": w.recipe, "way": w.name, "calls": found[w]} for w in found]
        asked.json.write_text(json.dumps(told, indent=1))
    return any(not best_first(found, one.recipe) for one in found)


@contextmanager
def chat_model(name: str | None) -> Iterator[ChatMLXCached]:
    """The model that is asked, over an empty cache."""
    with tempfile.TemporaryDirectory(prefix="mlx-cached-recipes-") as folder:
        home = Path(folder) / "home"
        home.mkdir()
        # Models are the user's own; only the cache starts empty.
        (home / "data").symlink_to(data_folder())
        os.environ[HOME_VARIABLE] = str(home)
        yield ChatMLXCached(model=name or played(Path(folder) / "model"), max_tokens=128)
        close_engines()


def played(folder: Path) -> str:
    """A model that plays the recipes' answers, with Qwen3's tokenizer and template."""
    tokenizer = helper("real_tokenizers").real_tokenizer("qwen3")
    return str(
        helper("scripted_model").scripted_folder(
            folder, tokenizer, None, helper("recipe_ways").ANSWERS
        )
    )


def tables_of(found: dict[Any, list[Any]]) -> dict[str, str]:
    """A table for each recipe, by its name."""
    made: dict[str, str] = {}
    for one, costs in found.items():
        prompt = sum(cost.prompt for cost in costs)
        prefilled = sum(cost.prefilled for cost in costs)
        name = f"**{one.name}**" if one.best else one.name
        cells = [name, len(costs), f"{prompt:,}", f"{prefilled:,}", f"{prefilled / prompt:.2f}"]
        line = f"| {' | '.join(map(str, cells))} |\n"
        made[one.recipe] = made.get(one.recipe, HEAD) + line
    return made


def summed_up(found: dict[Any, list[Any]]) -> str:
    """The cost of each call in the two ways to sum up: four turns, the summary, two turns."""
    theirs, ours = (found[one] for one in found if one.recipe == "a conversation summed up")
    lines = ["| call | `SummarizationMiddleware` | `PrefixKeepingSummarization` |", "|---|--:|--:|"]
    names = ["turn 1", "turn 2", "turn 3", "turn 4", "**the summary**", "turn 5", "turn 6"]
    for name, *both in zip(names, theirs, ours, strict=True):
        told = [f"{cost.prefilled:,} of {cost.prompt:,}" for cost in both]
        lines.append(f"| {' | '.join([name, *told])} |")
    return "".join(f"{line}\n" for line in lines)


def best_first(found: dict[Any, list[Any]], recipe: str) -> bool:
    """True if no other way of the recipe prefills less than the recommended one."""
    sums = {
        one: sum(c.prefilled for c in costs) for one, costs in found.items() if one.recipe == recipe
    }
    return min(sums.values()) == min(sums[one] for one in sums if one.best)


if __name__ == "__main__":
    sys.exit(main())
