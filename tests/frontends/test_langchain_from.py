"""docs/langchain-from.md: each parameter of the other chat models, and what it says of it."""

import json
import re
import subprocess
import venv
from pathlib import Path
from typing import NamedTuple

import pytest

from langchain_adapter.foreign_words import WHY_NOT
from langchain_mlx_cached import ChatMLXCached

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "langchain-from.md"
RECORDED = json.loads((HERE / "other_chat_models.json").read_text())
# A value that the other class would be given; what is not here has any, and is refused by its name.
GIVEN = {
    **{"model": "mine", "model_name": "mine", "stop": ["x"], "stop_sequences": ["x"]},
    **{"temperature": 0.5, "top_p": 0.5, "min_p": 0.5, "top_k": 5, "seed": 5},
    **{"presence_penalty": 0.5, "frequency_penalty": 0.5, "logit_bias": {7: 1.0}},
    **{"repeat_penalty": 1.5, "repetition_penalty": 1.5, "streaming": True, "reasoning": True},
    **{"max_tokens": 5, "max_completion_tokens": 5, "num_predict": 5, "verbose": True},
    **{"logprobs": True, "top_logprobs": 5},
}
# What a call says beside the fields.
OF_CALLS = {"response_format"}


class Row(NamedTuple):
    """The page's row about one word."""

    word: str
    here: str
    taken: str


def section(name):
    """A class's part of the page."""
    return PAGE.read_text().partition(f"\n## From {name}\n")[2].partition("\n## ")[0]


def rows(name):
    """Each word of a class's table, once for each time that it stands there."""
    _, _, *lines = [line for line in section(name).splitlines() if line.startswith("|")]
    for line in lines:
        words, here, taken, _ = [cell.strip() for cell in line.strip("|").split("|")]
        found = re.findall(r"`(\w+)`", words)
        how = taken.split(", ")
        for word, one in zip(found, how if len(how) > 1 else how * len(found), strict=True):
            yield Row(word, here.strip("`"), one)


ROWS = [pytest.param(row, id=f"{name}-{row.word}") for name in RECORDED for row in rows(name)]


@pytest.mark.parametrize("name", RECORDED)
def test_the_page_has_each_parameter_of_the_other_class_once(name):
    assert sorted(row.word for row in rows(name)) == RECORDED[name]["words"]
    package, version = RECORDED[name]["package"], RECORDED[name]["version"]
    assert re.search(f"`{package}` {re.escape(version)}", section(name))


@pytest.mark.parametrize("row", ROWS)
def test_what_is_there_for_a_word_exists(row):
    known = {*ChatMLXCached.model_fields, *OF_CALLS}
    assert row.here == "—" or row.here in known or callable(getattr(ChatMLXCached, row.here))


@pytest.mark.parametrize("row", ROWS)
def test_a_word_is_taken_as_the_page_says(row, engine):
    default = ChatMLXCached()
    if row.taken == "no":
        with pytest.raises(ValueError, match=f"{row.word!r} is no setting of .*: ") as refused:
            ChatMLXCached(**{row.word: 1})
        # What the page has in its place the error has too.
        assert row.here == "—" or re.search(rf"\b{row.here}\b", WHY_NOT[row.word])
        assert WHY_NOT[row.word] in str(refused.value)
        with pytest.raises(ValueError, match=f"{row.word!r} is no setting"):
            default.invoke("Hi.", **{row.word: 1})
    elif row.taken == "ignored":
        assert ChatMLXCached(**{row.word: 1}) == default
        assert default.invoke("Hi.", **{row.word: 1}).text == "Hello"
    else:
        assert row.taken == "yes"
        made = ChatMLXCached(**{row.word: GIVEN[row.word]})
        assert getattr(made, row.here) == GIVEN[row.word] != getattr(default, row.here)


def test_the_defaults_that_the_page_names():
    chat = ChatMLXCached()
    assert (chat.temperature, chat.top_p, chat.top_k, chat.repetition_penalty) == (0, 1, 0, 1)
    assert f"has at most {chat.max_tokens} tokens" in PAGE.read_text()
    told = re.findall(r"(\d+) by default; (?:`None`|ChatMLX: 100)", PAGE.read_text())
    assert set(told) == {str(chat.max_tokens)}


@pytest.mark.soak
def test_the_record_is_what_the_packages_have(tmp_path):
    """In an environment of its own, with the versions that are named."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    wanted = [f"{of['package']}=={of['version']}" for of in RECORDED.values()]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
    told = subprocess.run(
        [python, "-W", "ignore", HERE / "other_chat_models.py"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(told.stdout) == RECORDED


def test_the_page_tells_how_long_an_answer_may_be():
    page = PAGE.read_text(encoding="utf-8")
    most = ChatMLXCached().max_tokens
    assert f"an answer has at most {most} tokens" in page
    assert page.count(f"{most} by default") == 2
