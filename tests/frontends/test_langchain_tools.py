"""Tools and choices as LangChain's users know them, and what the engine is asked of them."""

import pytest
from langchain_core.messages import (
    AIMessage,
    HumanMessage,
    ToolMessage,
)
from langchain_core.tools import tool
from scripted_engine import Person, add

from langchain_adapter import ChatMLXCached


@tool
def clock() -> str:
    """Tell the time."""
    return "noon"


@pytest.mark.parametrize(
    ("given", "how", "name"),
    [
        (None, "auto", ""),
        ("auto", "auto", ""),
        ("none", "none", ""),
        (False, "none", ""),
        ("any", "any", ""),
        ("required", "any", ""),
        (True, "any", ""),
        ("add", "any", "add"),
        ({"type": "function", "function": {"name": "clock"}}, "any", "clock"),
        ({"type": "tool", "name": "add"}, "any", "add"),
        ({"type": "any"}, "any", ""),
    ],
)
def test_every_tool_choice(engine, given, how, name):
    ChatMLXCached().bind_tools([clock, add], tool_choice=given).invoke("Hi.")
    (asked,) = engine.asked
    assert (asked.tool_choice, asked.tool, len(asked.tools)) == (how, name, 2)


def test_a_tool_choice_that_is_none_is_refused_when_it_is_bound():
    for choice in ("sub", 7, {"type": "function", "function": {"name": "sub"}}, {"kind": "any"}):
        with pytest.raises(ValueError, match=r"tool_choice .*add"):
            ChatMLXCached().bind_tools([add], tool_choice=choice)


def test_strict_tools_make_the_same_prompt(engine):
    for strict in (None, False, True):
        ChatMLXCached().bind_tools([clock], strict=strict).invoke("Hi.")
    plain, loose, strict = (asked.tools[0]["function"] for asked in engine.asked)
    assert plain == loose
    assert "strict" not in strict
    assert strict["parameters"]["additionalProperties"] is False


def test_parallel_calls_and_formats_beside_tools(engine):
    chat = ChatMLXCached().bind_tools(
        [add], parallel_tool_calls=False, response_format=Person, tool_choice="auto"
    )
    chat.invoke("Hi.")
    (asked,) = engine.asked
    assert asked.max_calls == 1
    assert asked.schema == Person.model_json_schema()
    assert asked.tool_choice == "auto"


def test_the_policy_calls_first_where_nobody_chose(engine):
    chat = ChatMLXCached(tool_policy="call_first")
    history = [
        HumanMessage("Hi."),
        AIMessage("", tool_calls=[_call()]),
        ToolMessage("3", tool_call_id="c1"),
    ]
    chat.bind_tools([add]).invoke("Hi.")
    chat.bind_tools([add]).invoke(history)
    chat.bind_tools([add], tool_choice="auto").invoke("Hi.")
    chat.invoke("Hi.")
    assert [asked.tool_choice for asked in engine.asked] == ["any", "auto", "auto", "auto"]


def _call():
    return {"name": "add", "args": {"a": 1, "b": 2}, "id": "c1"}
