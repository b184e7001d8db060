"""An answer that ends inside a call: a message all the same, and never half a call in it."""

import asyncio
import json
import random
from contextlib import suppress
from typing import Literal

import pytest
from langchain.agents import create_agent
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_core.utils.json import parse_partial_json
from pydantic import BaseModel
from real_families import Played, every_family
from scripted_engine import Person, add, finished, merged

from langchain_adapter import ChatMLXCached
from langchain_adapter.answers import _breaking
from llm_mlx_promptcache.chat.messages import ToolCall
from llm_mlx_promptcache.engine.events import CallArguments, CallName, InvalidCall, TextDelta

pytestmark = pytest.mark.usefixtures("shared_views")


@tool
def look(way: Literal["north", "south"], steps: Literal[1, 2]) -> str:
    """Look around."""
    return "a wall"


class Ship(BaseModel):
    """A ship."""

    kind: Literal["brig", "ketch"]
    masts: Literal[1, 2, 3]


def without_errors(calls):
    """Invalid calls but for the reason, which LangChain drops of those that came in chunks."""
    return [{k: v for k, v in call.items() if k not in ("id", "error")} for call in calls]


CUT = "a call of a tool"
HALF = InvalidCall("add", '<tool_call>{"name": "add", "argu', "it ended here", "h1")
TOLD = [CallName("c1", "add"), CallArguments("c1", '{"a": '), CallArguments("c1", "1")]


@pytest.mark.parametrize("version", ["v0", "v1"])
@pytest.mark.parametrize(
    ("said", "more"),
    [
        (TOLD, {}),
        (TOLD, {"half_call": InvalidCall("add", "x", "it ended here", "c1")}),
        ([TextDelta("Well.")], {"half_call": HALF}),
        ([CallName("c1", "add")], {}),
        ([CallName("c1", "add"), CallArguments("c1", '{"a": 1, "b": 2}')], {}),
    ],
)
def test_half_a_call_is_an_invalid_one(engine, version, said, more):
    text = "".join(one.text for one in said if isinstance(one, TextDelta))
    engine.events = [*said, finished(text, cut=CUT, reason="length", **more)]
    chat = ChatMLXCached(output_version=version).bind_tools([add])
    whole, streamed = chat.invoke("Hi."), merged(list(chat.stream("Hi.")))
    awaited = asyncio.run(chat.ainvoke("Hi."))
    for one in (whole, streamed, awaited):
        assert one.tool_calls == []
        assert one.text == text
        assert one.response_metadata["finish_reason"] == "length"
        assert one.response_metadata["cut"] == CUT
        [call] = one.invalid_tool_calls
        assert call["name"] == "add"
        [why] = one.response_metadata["invalid_calls"]
        assert (why["id"], bool(why["error"])) == (call["id"], True)
    assert without_errors(streamed.invalid_tool_calls) == without_errors(whole.invalid_tool_calls)


def test_whole_calls_before_it_are_calls(engine):
    call = [CallName("c1", "add"), CallArguments("c1", '{"a": 1, "b": 2}')]
    half = [CallName("c2", "add"), CallArguments("c2", '{"a": 3, "b"')]
    made = ChatMLXCached().bind_tools([add])
    first = ToolCall("add", {"a": 1, "b": 2}, "c1")
    engine.events = [*call, *half, finished("", [first], cut=CUT)]
    for one in (made.invoke("Hi."), merged(list(made.stream("Hi.")))):
        assert [call["id"] for call in one.tool_calls] == ["c1"]
        assert [call["id"] for call in one.invalid_tool_calls] == ["c2"]


def test_nothing_mends_arguments_that_were_cut():
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    deep = {
        "a": ['x"\\', {"b": [1, -2.5e3, None]}, "ü\n"],
        "c": {"d": True, "e": "]}"},
        "f": "\u2028",
    }
    for text in (json.dumps(deep), json.dumps(deep, ensure_ascii=False), "{}", '{"a": []}'):
        for end in range(len(text) + 1):
            cut = text[:end]
            broken = cut + _breaking(cut)
            with suppress(ValueError):
                assert not isinstance(parse_partial_json(broken), dict), cut
    for _ in range(300):
        cut = "".join(dice.choices('{}[]",:\\ a1', k=dice.randrange(30)))
        assert _breaking(cut)


@pytest.mark.filterwarnings("ignore:reuse lost")  # what follows is asked without the tools
@pytest.mark.parametrize("most", [1, 3, 6, 12, 18, 24, 30, 36, 48, 64])
def test_a_forced_call_at_every_length(own_cache, tiny_llama, most):
    chat = ChatMLXCached(model=str(tiny_llama()), max_tokens=most, max_calls=1)
    bound = chat.bind_tools([look], tool_choice="any")
    whole, streamed = bound.invoke("Go."), merged(list(bound.stream("Go.")))
    assert streamed.tool_calls == [] or streamed.tool_calls[0]["args"].keys() == {"way", "steps"}
    assert len(streamed.tool_calls) == len(whole.tool_calls)
    cut = whole.response_metadata["finish_reason"] == "length"
    assert cut == (not whole.tool_calls)
    assert len(streamed.invalid_tool_calls) == len(whole.invalid_tool_calls)
    assert without_errors(streamed.invalid_tool_calls) == without_errors(whole.invalid_tool_calls)
    if cut:
        assert whole.response_metadata["cut"]
        # What was said can stand in a history, with a result or without.
        ids = [call["id"] for call in whole.invalid_tool_calls]
        results = [ToolMessage("it was cut", tool_call_id=id, status="error") for id in ids]
        for more in ([], results):
            chat.invoke([HumanMessage("Go."), whole, *more, HumanMessage("Again.")], max_tokens=1)


def test_l5_an_agent_outlives_a_call_that_was_cut(own_cache, tiny_llama):
    chat = ChatMLXCached(
        model=str(tiny_llama()), max_tokens=20, max_calls=1, tool_policy="call_first"
    )
    agent = create_agent(chat, [look])
    state = agent.invoke({"messages": [HumanMessage("Go.")]})
    last = state["messages"][-1]
    assert last.type == "ai"
    assert last.response_metadata["finish_reason"] == "length"
    again = agent.invoke({"messages": [*state["messages"], HumanMessage("Go on.")]})
    # LangChain itself answers the call that was none.
    kinds = [message.type for message in again["messages"]]
    assert kinds[:2] + kinds[-2:] == ["human", "ai"] * 2
    *_, (streamed, _) = agent.stream({"messages": [HumanMessage("Go.")]}, stream_mode="messages")
    assert streamed.response_metadata["finish_reason"] == "length"


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize("schema", [Ship, Ship.model_json_schema()])
@pytest.mark.parametrize("most", [1, 9, 24])
def test_l5_include_raw_never_raises_for_what_was_said(own_cache, tiny_llama, method, schema, most):
    chat = ChatMLXCached(model=str(tiny_llama()), max_tokens=most)
    raw = chat.with_structured_output(schema, method=method, include_raw=True)

    async def later():
        return await raw.ainvoke("Who?"), [part async for part in raw.astream("Who?")]

    awaited, parts = asyncio.run(later())
    streamed = {}
    for part in (*raw.stream("Who?"), *parts):
        streamed |= {k: v for k, v in part.items() if v is not None}
    for told in (raw.invoke("Who?"), awaited):
        assert told["parsed"] is None
        assert isinstance(told["parsing_error"], OutputParserException)
        assert told["raw"].response_metadata["finish_reason"] == "length"
    assert isinstance(streamed["parsing_error"], OutputParserException)
    with pytest.raises(OutputParserException, match="raise max_tokens"):
        chat.with_structured_output(schema, method=method).invoke("Who?")


def test_half_an_argument_is_no_object_of_a_schema(engine):
    said = [CallName("c1", "Person"), CallArguments("c1", '{"name": "Ann", "age": 7')]
    engine.events = [*said, finished(cut=CUT, reason="length")]
    chat = ChatMLXCached().with_structured_output(Person, method="function_calling")
    with pytest.raises(OutputParserException, match="raise max_tokens"):
        chat.invoke("Who?")
    with pytest.raises(OutputParserException, match="raise max_tokens"):
        list(chat.stream("Who?"))


@tool
def find_place(place_name: str) -> str:
    """Find a place on the map."""
    return place_name


@pytest.mark.parametrize("family", every_family(often={"Qwen3", "gpt-oss"}))
def test_law_14_half_a_call_of_a_real_family_keeps_what_was_said(tmp_path, own_cache, family):
    played, asked = Played(family), {"place_name": "the old harbour in the north"}
    spoken = played.calls(("find_place", asked))
    folder = str(played.folder(tmp_path / "played", {"Go.": spoken}))
    for more in ({}, {"tool_choice": "find_place"}):
        bound = ChatMLXCached(model=folder, max_tokens=256).bind_tools([find_place], **more)
        most = bound.invoke("Go.").usage_metadata["output_tokens"]
        halves = []
        for less in range(2, most - 1, 3):
            cut = bound.invoke("Go.", max_tokens=most - less)
            assert cut.response_metadata["finish_reason"] in ("length", "tool_calls")
            # Where no more than closing marks are missing the call is whole.
            assert [call["args"] for call in cut.tool_calls] in ([], [asked])
            assert not (cut.tool_calls and cut.invalid_tool_calls)
            halves += cut.invalid_tool_calls
        assert {call["name"] for call in halves} <= {"find_place", "", None}
        assert any(call["name"] and "the old" in call["args"] for call in halves)
