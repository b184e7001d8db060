"""The reasoning of models with real tokenizers, as users of both front ends see it.

The engine's own tests have every cell; here reasoning goes through `llm` and LangChain.
"""

import json

import pytest
from real_families import Played, every_family

from langchain_adapter import ChatMLXCached
from llm_mlx_promptcache.config import Settings, save_settings

pytestmark = pytest.mark.usefixtures("shared_views")
# Marks round it, and channels.
OFTEN = ("Qwen3", "gpt-oss")
REASONING = [one for one in every_family(often=OFTEN) if one.values[0].reasons is not None]
THOUGHT = "Hm, Rome. Or <b>Oslo</b>?"
WORDS = "It is Rome."
SCHEMA = {
    "title": "Trip",
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}
TRIP = {"city": "Rome", "days": 3}


@pytest.fixture(params=REASONING)
def family(request):
    """Each family that reasons."""
    return request.param


@pytest.fixture
def folder(family, tmp_path):
    """A model that thinks before it says words, or a document."""
    before = family.thought(THOUGHT) + family.words
    return Played(family).folder(
        tmp_path / "model", {"Say it.": before + WORDS, "Write it.": before + json.dumps(TRIP)}
    )


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["Say it."], WORDS),
        (["Write it.", "--schema", json.dumps(SCHEMA)], json.dumps(TRIP)),
    ],
    ids=["words", "a schema"],
)
def test_law_14_llm_shows_and_logs_what_was_thought(folder, quick_home, asked, said):
    save_settings(Settings(default_model=str(folder)))
    shown, beside = quick_home.llm("-m", "mlx-cached", *asked, "-o", "thinking", "1")
    assert (shown, beside.partition("\n")[0]) == (said, THOUGHT)
    logged = quick_home.last()
    assert (logged["response"], logged["reasoning"]) == (said, THOUGHT)
    assert logged["details"]["reasoning"] > 0


def test_law_14_langchain_has_what_was_thought_beside_the_text(
    family, folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path / "mlx"))
    # Who can't be asked is told so, and that is a warning.
    model = ChatMLXCached(model=str(folder), thinking=None if family.reasons.always else True)
    blocks = [{"type": "reasoning", "reasoning": THOUGHT}, {"type": "text", "text": WORDS}]
    whole = model.invoke("Say it.")
    first, *rest = model.stream("Say it.")
    for answer in (whole, sum(rest, first)):
        assert answer.content == WORDS
        assert answer.additional_kwargs["reasoning_content"] == THOUGHT
        assert answer.content_blocks == blocks
        assert answer.usage_metadata["output_token_details"]["reasoning"] > 0
    for method in ("json_schema", "json_mode"):
        wanted = model.with_structured_output(SCHEMA, method=method, include_raw=True)
        made = wanted.invoke("Write it.")
        assert made["parsed"] == TRIP
        assert made["raw"].additional_kwargs["reasoning_content"] == THOUGHT
