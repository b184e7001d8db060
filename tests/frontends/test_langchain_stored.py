"""ChatMLXCached as plain data, and back: what `dumps` writes, and what `loads` needs for it."""

import json

import pytest
from langchain_core.load import dumpd, dumps, load, loads
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableSequence

from langchain_mlx_cached import ChatMLXCached

pytestmark = pytest.mark.filterwarnings("ignore:The function `loads?` is in beta")

NEEDED = {"allowed_objects": [ChatMLXCached], "valid_namespaces": ["langchain_mlx_cached"]}


@pytest.fixture
def chat():
    return ChatMLXCached(
        model="some/mine", max_tokens=9, cache_salt="me", template_arguments={"a": 1}
    )


def test_it_is_stored_and_loaded_without_weights(chat):
    assert loads(dumps(chat), **NEEDED) == chat
    assert load(dumpd(chat), **NEEDED) == chat
    assert type(loads(dumps(chat), **NEEDED)) is ChatMLXCached


def test_what_is_stored_is_the_name_to_import_and_what_was_set(chat):
    stored = json.loads(dumps(chat))
    assert stored["id"] == ["langchain_mlx_cached", "ChatMLXCached"]
    own = {
        "model": "some/mine",
        "max_tokens": 9,
        "cache_salt": "me",
        "template_arguments": {"a": 1},
    }
    assert {name: stored["kwargs"][name] for name in own} == own
    assert "metadata" not in stored["kwargs"]
    assert chat.lc_secrets == {}


@pytest.mark.parametrize("lacking", NEEDED)
def test_l10_each_of_the_two_arguments_is_needed(chat, lacking):
    given = {name: value for name, value in NEEDED.items() if name != lacking}
    if lacking == "allowed_objects":
        given[lacking] = "core"  # what loads takes without it, after a warning
    with pytest.raises(ValueError, match=r"not allowed|Invalid namespace"):
        loads(dumps(chat), **given)


def test_a_chain_with_it_is_loaded_with_the_classes_that_it_is_made_of(chat, engine):
    prompt = ChatPromptTemplate.from_messages([("human", "{question}")])
    parts = [ChatMLXCached, RunnableSequence, ChatPromptTemplate, *map(type, prompt.messages)]
    parts += [type(message.prompt) for message in prompt.messages]
    chain = loads(dumps(prompt | chat), **{**NEEDED, "allowed_objects": parts})
    assert chain.invoke({"question": "Hi."}).text == "Hello"
    assert engine.asked[0].cache_salt == "me"
