"""The docstring of ChatMLXCached: LangChain's sections, and each example in them, run in order."""

import ast
import asyncio
import inspect
import re
import textwrap
from types import FunctionType

import pytest

from langchain_mlx_cached import ChatMLXCached
from llm_mlx_promptcache.engine.pool import close_engines

DOCSTRING = inspect.getdoc(ChatMLXCached)
# The sections that LangChain's partner packages have, and two of this model's own.
SECTIONS = [
    *("Setup", "Key init args", "Instantiate", "Invoke", "Stream", "Async", "Tool calling"),
    *("Structured output", "JSON mode", "Reasoning output", "Token usage", "Logprobs"),
    *("Response metadata", "Reusing prefixes", "Stored as plain data"),
]
WHOLE = ("Tool calling", "Structured output")  # whose answers must be whole


def parts():
    """Each section's title and what stands in it."""
    _, *found = re.split(r'^\?\?\?\+? info "(.+)"$', DOCSTRING, flags=re.MULTILINE)
    return [
        (title, textwrap.dedent(text)) for title, text in zip(found[::2], found[1::2], strict=True)
    ]


def examples():
    """The examples in Python, from top to bottom, each with its section's title."""
    fenced = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [(title, code) for title, text in parts() for code in fenced.findall(text)]


def test_l12_it_has_the_sections_of_langchains_partners():
    assert [title for title, _ in parts()] == SECTIONS
    without = {title for title, _ in parts()} - {title for title, _ in examples()}
    assert without == {"Setup", "Key init args", "Reasoning output"}


def test_its_table_names_fields():
    (table,) = [text for title, text in parts() if title == "Key init args"]
    named = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert len(named) > 5
    assert set(named) <= set(ChatMLXCached.model_fields)


@pytest.fixture
def told(tmp_path, monkeypatch, real_model_folder):
    """The names of the examples, once all of them have run in one process."""
    assert real_model_folder.exists()
    home = tmp_path / "home"
    (home / "data").mkdir(parents=True)
    (home / "data" / "models").symlink_to(real_model_folder.parent)
    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(home))
    names = {}
    for title, code in examples():
        if "chat" in names:  # a test need not wait for more words than it looks at
            names["chat"].max_tokens = 48 if title in WHOLE else 12
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        compiled = compile(code, f"<{title}>", "exec", flags=flags)
        ran = FunctionType(compiled, names)()
        if inspect.iscoroutine(ran):
            asyncio.run(ran)
    yield names
    close_engines()


@pytest.mark.real_model
@pytest.mark.filterwarnings("ignore:The function `loads` is in beta")
def test_each_example_runs_and_gives_what_it_says(told):
    answer = told["answer"]
    assert answer.text
    assert told["full"].text == told["awaited"].text == answer.text
    assert [one.text for one in told["both"]] == [answer.text] * 2
    assert told["call"]["args"]["place"] in ("Dover", "Harwich")
    assert told["told"].type == "ai"
    assert isinstance(told["ship"], told["Ship"])
    assert told["document"].text.startswith("{")
    assert told["usage"]["output_tokens"] == len(
        told["likely"].response_metadata["logprobs"]["content"]
    )
    assert len(told["first"]["top_logprobs"]) == 2
    assert told["metadata"]["cache"]["prefilled"] == told["usage"]["input_tokens"]
    read = told["again"].usage_metadata["input_token_details"]["cache_read"]
    assert read >= told["usage"]["input_tokens"]
    assert told["warm_tokens"] > 20
    assert told["seen"]["state"] == "healthy"
    assert told["loaded"] == told["chat"]
