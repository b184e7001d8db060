"""`llm -T` as users run it, with real tokenizers: processes, and weights that play a script.

What the models really ran is what they wrote down themselves, beside what our counters say.
"""

from importlib.metadata import version
from itertools import pairwise

import pytest
from driven_llm import ScriptedUser, called, goes_on, tokens_told
from real_families import Played, every_family
from scripted_model import SPLIT, computed_twice, tokens_run

# A template that drops reasoning, one that changes nothing, and one with channels.
RESTARTED = ("Qwen3", "Llama 3.1", "gpt-oss")
FUNCTIONS = """
def find_place(city: str, days: int, far: bool = False, tags: list[str] | None = None) -> str:
    "Find a place in a city."
    return "Found " + repr((city, days, far, tags))

def add_up(numbers: list[float], note: str | None = None) -> str:
    "Add numbers."
    return "Sum " + repr((numbers, note))
"""
PLACE = ("find_place", {"city": "Zürich", "days": 2, "far": True, "tags": ["a", 'b "c"']})
SPELLED = ("find_place", {**PLACE[1], "city": f"Zü{SPLIT}ri{SPLIT}ch"})
ADD = ("add_up", {"numbers": [1, 2.5], "note": None})
VERSION = ("llm_version", {})
RESULTS = {
    "find_place": "Found ('Zürich', 2, True, ['a', 'b \"c\"'])",
    "add_up": "Sum ([1, 2.5], None)",
    "llm_version": version("llm"),
}


def script(played):
    """A call, two more (at once, where the family can), an answer; and another one.

    Some words come in other tokens than the tokenizer gives them: only a replay goes on from there.
    """
    more = [[VERSION, ADD]] if played.parallel else [[VERSION], [ADD]]
    cues = ["Found (", version("llm")]
    return {
        "Plan it.": played.calls(SPELLED),
        **{cue: played.calls(*calls) for cue, calls in zip(cues, more, strict=False)},
        "Sum (": played.words(f"It takes 3.5 da{SPLIT}ys."),
        "And then?": played.words("Then it is over."),
    }


def user_of(home, folder, played):
    """Someone with a model of the family, and the functions with each command."""
    (folder / "tools.py").write_text(FUNCTIONS)
    model = played.folder(folder / "model", script(played))
    tools = ("-T", "llm_version", "--functions", str(folder / "tools.py"))
    return ScriptedUser(home, folder, model, tools)


def a_loop(user, played):
    """Ask what takes calls, and check each of them; the log's entries."""
    assert user.llm("-m", "mlx-cached", "-s", "Be brief.", "Plan it.") == "It takes 3.5 days."
    steps = user.logged()
    more = [[VERSION, ADD]] if played.parallel else [[VERSION], [ADD]]
    assert [called(entry) for entry in steps] == [[PLACE], *more, []]
    results = [one for entry in steps for one in entry["tool_results"]]
    assert {one["name"]: one["output"] for one in results} == RESULTS
    for before, after in pairwise(steps if played.replays else ()):
        goes_on(after, before)
    assert tokens_told(steps) == tokens_run(user.runs[0])
    assert computed_twice(user.runs[0]) == 0
    return steps


OTHERS = [one for one in every_family(often=("Gemma 3",)) if one.id not in RESTARTED]


@pytest.mark.parametrize("family", OTHERS)
def test_a_loop_of_tools(family, bare_home, tmp_path):
    played = Played(family)
    a_loop(user_of(bare_home, tmp_path, played), played)


@pytest.mark.parametrize("family", every_family(often=RESTARTED))
def test_a_loop_of_tools_and_the_next_turn_in_another_process(family, bare_home, tmp_path):
    played = Played(family)
    user = user_of(bare_home, tmp_path, played)
    steps = a_loop(user, played)
    assert user.llm("-c", "And then?", "--no-stream") == "Then it is over."
    last = user.logged()[-1]
    assert last["response_json"]["from_memory"] == 0
    assert last["response_json"]["from_disk"] == last["details"]["cached"] > 0
    if played.keeps:
        goes_on(last, steps[-1])
    assert tokens_told([last]) == tokens_run(user.runs[1])
    # What the first process has run, the second one does not: so it read it to the last token.
    assert computed_twice([run for runs in user.runs for run in runs]) == 0
