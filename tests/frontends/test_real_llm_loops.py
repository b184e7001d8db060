"""`llm -T` as users run it, with real tokenizers: processes, and weights that play a script.

What the models really ran is what they wrote down themselves, beside what our counters say.
"""

import json
from importlib.metadata import version
from itertools import pairwise

import pytest
from click.testing import CliRunner
from llm.cli import cli
from real_families import Played, every_family
from scripted_model import RUNS, SPLIT, computed_twice, environment, runs_of, tokens_run

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


class User:
    """Someone with a model, the functions, and what each command leaves behind."""

    def __init__(self, home, folder, model):
        self._home, self._folder = home, folder
        self._home.ours("default", str(model))
        (folder / "tools.py").write_text(FUNCTIONS)
        self._tools = ("-T", "llm_version", "--functions", str(folder / "tools.py"))
        self.runs = []

    def llm(self, *arguments):
        """What `llm` says in a new process, and what its model ran, which `runs` has at its end."""
        file = self._folder / f"runs-{len(self.runs)}"
        variables = {RUNS: str(file), "PYTHONPATH": environment()["PYTHONPATH"]}
        said, _ = self._home.llm(*arguments, *self._tools, **variables)
        self.runs.append(runs_of(file))
        return said

    def logged(self):
        """What `llm logs` has, oldest first."""
        wanted = ["logs", "list", "--json", "-n", "0"]
        done = CliRunner().invoke(cli, wanted, env=self._home.own())
        assert done.exit_code == 0, done.output
        entries = json.loads(done.output)
        return [entry | {"details": json.loads(entry["token_details"])} for entry in entries]


def path_of(entry):
    """The tokens of a prompt and its answer."""
    return entry["input_tokens"] + entry["output_tokens"]


def goes_on(entry, before):
    """All of the path before was there, and what is new was prefilled."""
    assert entry["details"]["cached"] == path_of(before)
    assert entry["details"]["prefilled"] == entry["input_tokens"] - path_of(before)


def tokens_told(entries):
    """How many tokens were run, by what is logged: guesses that were wrong among them."""
    told = [(one["details"], one["output_tokens"]) for one in entries]
    return sum(
        details["prefilled"] + said + details["drafted"] - details["accepted"]
        for details, said in told
    )


def called(entry):
    return [(call["name"], call["arguments"]) for call in entry["tool_calls"]]


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


@pytest.mark.parametrize("family", [one for one in every_family() if one.id not in RESTARTED])
def test_a_loop_of_tools(family, bare_home, tmp_path):
    played = Played(family)
    a_loop(User(bare_home, tmp_path, played.folder(tmp_path / "model", script(played))), played)


@pytest.mark.parametrize("family", every_family(often=RESTARTED))
def test_a_loop_of_tools_and_the_next_turn_in_another_process(family, bare_home, tmp_path):
    played = Played(family)
    user = User(bare_home, tmp_path, played.folder(tmp_path / "model", script(played)))
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
