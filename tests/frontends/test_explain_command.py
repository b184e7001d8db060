"""The reasons for an answer's reuse: counts as logged, and the token where paths part."""

from contextlib import closing
from pathlib import Path

import pytest
import sqlite_utils
from llm.migrations import migrate
from tiny_models import write_family

LIMIT = ("-o", "max_tokens", "4")
SYSTEM = "the answer of the system"


@pytest.fixture(scope="module")
def asked_once(new_home, tiny_llama):
    home = new_home()
    home.ours("default", str(tiny_llama()))
    home.llm("-s", SYSTEM, "-m", "mlx-cached", "Hello capital of the user", *LIMIT)
    return home


def test_the_latest_answer_and_where_it_parted(asked):
    first = asked.last()
    asked.llm("-s", SYSTEM, "-m", "mlx-cached", "Hello and other words", *LIMIT)
    second = asked.last()
    found = asked.told("explain")
    assert found["response"] == second["id"]
    assert found["prompt"] == found["now"]["prompt"] == second["input_tokens"]
    assert found["now"]["stored"] == second["input_tokens"]
    # What it could not reuse begins where the other path goes on otherwise.
    near = found["nearest"]
    assert near["at"] == found["cached"] == second["details"]["cached"]
    assert near["before"].endswith("Hello")
    assert near["prompt"].startswith(" and other words")
    assert near["stored"].startswith(" capital of the user")
    back = asked.told("explain", first["id"])
    assert back["response"] == first["id"]
    assert back["nearest"]["at"] == near["at"]
    assert back["nearest"]["stored"].startswith(" and other words")


def test_a_turn_of_a_conversation_is_rendered_as_it_was(asked):
    for text in ("and more", "of the same"):
        asked.llm("-c", text, *LIMIT)
        found, last = asked.told("explain"), asked.last()
        assert found["now"]["prompt"] == found["now"]["stored"] == last["input_tokens"]
        assert found["nearest"] is None
    lines = asked.ours("explain")[0].splitlines()
    assert lines[1].startswith(f"then: {found['cached']} of {found['prompt']} prompt tokens")
    assert lines[-1].startswith("no other stored path")


def test_what_was_cleared_is_told(asked):
    asked.ours("clear")
    found = asked.told("explain")
    assert found["now"]["stored"] == 0
    assert found["now"]["spans"] == []
    assert found["prompt"] == asked.last()["input_tokens"]


def test_a_prompt_with_a_salt_of_its_own_is_looked_up_there(asked):
    asked.llm("-m", "mlx-cached", "-s", SYSTEM, "Hello", *LIMIT, "-o", "cache_salt", "mine")
    found = asked.told("explain")
    assert found["now"]["stored"] == found["now"]["prompt"]
    spans = {span["id"]: span for span in asked.told("tree")}
    assert len({span["namespace"] for span in spans.values()}) == 2
    assert len({spans[file_id]["namespace"] for file_id in found["now"]["spans"]}) == 1
    assert found["nearest"] is None


def test_tools_are_part_of_the_prompt(bare_home, tiny_llama, show_tools):
    folder = tiny_llama()
    show_tools(folder)
    bare_home.ours("default", str(folder))
    bare_home.llm("-m", "mlx-cached", "-T", "llm_time", "-T", "llm_version", "Hello", *LIMIT)
    found = bare_home.told("explain")
    assert found["now"]["prompt"] == found["now"]["stored"] == bare_home.last()["input_tokens"]


@pytest.mark.drafts
@pytest.mark.parametrize("who", ["quick_home", "bare_hosted_home"])
def test_what_is_known_of_drafts_before_a_models_trial(request, tmp_path, tiny_llama, who):
    """Layers are seen as a model is loaded; what takes passes is found before its first draft."""
    home = request.getfixturevalue(who)

    def after_an_answer(of):
        home.llm("-m", "mlx-cached", "Hello capital", "-o", "max_tokens", str(of))
        lines = [line for line in home.ours("explain")[0].splitlines() if "drafted" in line]
        return home.told("explain")["now"]["undrafted"], lines

    home.ours("default", str(write_family(tmp_path / "odd", "deepseek_v41")))
    why = "its layers of kind LayerCache can't go back"
    assert after_an_answer(1) == (why, [f"answers of this model are not drafted: {why}"])
    home.ours("default", str(tiny_llama()))
    known, (line,) = after_an_answer(1)
    assert known is None
    assert "is not known yet" in line
    after_an_answer(8)
    assert after_an_answer(8) == ("", [])  # what it said before was tried


def test_texts_of_the_prompt_stay_on_their_lines_and_hold_no_commands(asked):
    asked.llm("-s", SYSTEM, "-m", "mlx-cached", "Hello \x1b[2J\nsecond\u202e", *LIMIT)
    out, _ = asked.ours("explain")
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert len(out.splitlines()) == 8


@pytest.mark.parametrize(
    ("arguments", "words"), [((), "no answer of"), (("nobody",), "no answer 'nobody' of")]
)
def test_an_answer_that_is_none_is_one_line(bare_home, arguments, words):
    (line,) = bare_home.ours("explain", *arguments, status=1)[1].splitlines()
    assert line.startswith("Error: llm has logged nothing yet")
    with closing(sqlite_utils.Database(bare_home.folder / "llm" / "logs.db")) as database:
        migrate(database)
    (line,) = bare_home.ours("explain", *arguments, status=1)[1].splitlines()
    assert words in line


def test_a_model_that_is_gone_is_one_line(asked, tmp_path):
    moved = Path(asked.ours("default")[0]).rename(tmp_path / "moved")
    try:
        (line,) = asked.ours("explain", status=1)[1].splitlines()
    finally:
        moved.rename(asked.ours("default")[0])
    assert "is not on this machine" in line
