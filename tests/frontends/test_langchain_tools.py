"""Tools and choices as LangChain's users know them, and what the engine is asked of them."""

import pytest
from langchain_core.messages import (
    AIMessage,
    HumanMessage,
    ToolMessage,
)
from langchain_core.tools import Tool, tool
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


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("web_search_preview", {"type": "web_search_preview"}),
        ("web_search_preview_2025_03_11", {"type": "web_search_preview_2025_03_11"}),
        ("code_interpreter", {"type": "code_interpreter", "container": {"type": "auto"}}),
        ("mcp", {"type": "mcp", "server_label": "x", "server_url": "https://x"}),
        ("custom", {"type": "custom", "name": "code"}),
        ("web_search_20250305", {"type": "web_search_20250305", "name": "web_search"}),
        ("bash_20250124", {"type": "bash_20250124", "name": "bash"}),
        ("google_search", {"google_search": {}}),
        ("code_execution", {"code_execution": {}}),
        ("systemTool", {"systemTool": {"name": "nova_grounding"}}),
        ("custom", Tool("x", lambda it: it, "Run it.", metadata={"type": "custom_tool"})),
    ],
)
def test_l9_tools_of_servers_are_refused_by_name(engine, kind, given):
    chat = ChatMLXCached()
    for ask in (
        lambda: chat.bind_tools([add, given]),
        lambda: chat.invoke("Hi.", tools=[add, given]),
    ):
        with pytest.raises(
            ValueError, match=rf"^tools\[1\] is of the kind '{kind}', which"
        ) as told:
            ask()
        assert len(str(told.value).splitlines()) == 1
    assert engine.asked == []


def test_l9_declarations_of_google_are_told_how_they_are_taken():
    with pytest.raises(ValueError, match="give each of them as a tool"):
        ChatMLXCached().bind_tools([{"function_declarations": [{"name": "add"}]}])


ARGUMENTS = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.parametrize(
    "given",
    [
        {"type": "function", "function": {"name": "f", "parameters": ARGUMENTS}},
        {"type": "function", "name": "f", "parameters": ARGUMENTS},
        {"name": "f", "parameters": ARGUMENTS},
        {"name": "f", "input_schema": ARGUMENTS},
        {"type": "custom", "name": "f", "input_schema": ARGUMENTS},
        {"toolSpec": {"name": "f", "inputSchema": {"json": ARGUMENTS}}},
        {**ARGUMENTS, "title": "f"},
    ],
)
def test_functions_are_taken_in_every_form_that_langchain_knows(engine, given):
    ChatMLXCached().bind_tools([given]).invoke("Hi.")
    (tool,) = engine.asked[0].tools
    assert tool["type"] == "function"
    assert tool["function"]["name"] == "f"
    assert tool["function"]["parameters"]["required"] == ["a"]


@pytest.mark.parametrize("function", [{}, None, "f", {"name": None}, {"parameters": ARGUMENTS}])
def test_l9_functions_without_a_name_are_refused_in_words(engine, function):
    given = {"type": "function", "function": function}
    chat = ChatMLXCached()
    for ask in (
        lambda: chat.bind_tools([add, given]),
        lambda: chat.invoke("Hi.", tools=[add, given]),
    ):
        with pytest.raises(ValueError, match=r"^tools\[1\].function has no name; give"):
            ask()
    assert engine.asked == []
