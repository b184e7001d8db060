"""Law 14: a call that can't be made reaches the user too, streamed or whole."""

import logging

import llm
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from scripted_engine import add, finished

from langchain_adapter import ChatMLXCached
from langchain_adapter.messages import from_langchain
from llm_mlx_promptcache.chat.generated import InvalidCall, ToolCall
from llm_mlx_promptcache.engine.events import CallArguments, CallName, ReasoningDelta, TextDelta
from llm_mlx_promptcache.llm_adapter.models import MlxCached

CALL = ToolCall("add", {"a": 1, "b": 2}, "c1")
# What models write of a call that is none: some of it reads as JSON, or as the beginning of it.
TEXTS = [
    '{"name": "add", "arguments": {"a": 1, "b"}}',
    '{"name": "plus", "arguments": {"a": 1}}',
    '{"a": 1, "b": ',
    '{"a": 1}}',
    '{"a": "x\ny"}',
    "[1, 2]",
    '"a string"',
    "null",
    "add(a=1, b=2",
    "<function=add>\n<parameter=a>",
    "",
    "{",
]


def unmade(text, id="bad", **more):
    return InvalidCall("add", text, "its JSON can't be read", id, **more)


def events_of(*wrong, calls=(CALL,), text="So."):
    """An answer of words, a call that is one, and calls that are none."""
    told = [ReasoningDelta("Hm."), TextDelta(text)]
    for call in calls:
        told += [CallName(call.id, call.name), CallArguments(call.id, '{"a": 1, "b": 2}')]
    end = finished(text, calls, reasoning="Hm.", invalid_calls=wrong)
    return [*told, *wrong, end]


def told_of(message):
    """All that a message says, but for the reasons, which chunks can't carry."""
    wrong = [{**call, "error": None} for call in message.invalid_tool_calls]
    kept = {k: v for k, v in message.response_metadata.items() if k != "output_version"}
    return message.text, message.tool_calls, wrong, message.additional_kwargs, kept


def blocks_of(message):
    """Its content as blocks, without the places that chunks are put together by."""
    return [{k: v for k, v in block.items() if k != "index"} for block in message.content_blocks]


@pytest.mark.parametrize("version", ["v0", "v1"])
@pytest.mark.parametrize("text", TEXTS)
def test_law_14_chunks_add_up_to_what_invoke_gives(engine, text, version):
    engine.events = events_of(unmade(text), unmade(text, "worse"))
    chat = ChatMLXCached(model="some/model", output_version=version).bind_tools([add])
    whole = chat.invoke("Go.")
    first, *rest = chat.stream("Go.")
    merged = sum(rest, first)
    assert told_of(merged) == told_of(whole)
    assert blocks_of(merged) == blocks_of(whole)
    assert [call["id"] for call in merged.tool_calls] == ["c1"]
    assert [call["id"] for call in merged.invalid_tool_calls] == ["bad", "worse"]
    assert merged.response_metadata["invalid_calls"][0]["error"] == "its JSON can't be read"
    # What answers it is taken in the next turn, and the answer is still the one that was made.
    results = [ToolMessage("no", tool_call_id=id) for id in ("c1", "bad", "worse")]
    for message in (whole, merged):
        _, answer, *_ = from_langchain([HumanMessage("Go."), message, *results])
        assert (answer.unmade, answer.unchanged("model")) == (2, True)


def test_the_text_of_a_call_that_reads_as_json_is_still_its_text(engine):
    text = '{"name": "plus", "arguments": {"a": 1}}'
    engine.events = events_of(unmade(text), calls=())
    (answer,) = from_langchain([ChatMLXCached(model="some/model").invoke("Go.")])
    assert answer.tool_calls[0].arguments == {"name": "plus", "arguments": {"a": 1}}


def look(at: str = "here") -> str:
    """Look somewhere."""
    return f"nothing {at}"


def test_law_14_llm_shows_the_text_of_a_call_that_cant_be_made_and_says_so(scripted, caplog):
    wrong = unmade('{"name": "look", "arguments": {"at"}')
    scripted.answers = [[TextDelta("So."), wrong, TextDelta("Well.")]]
    response = MlxCached().prompt("Go.", tools=[look])
    with caplog.at_level(logging.WARNING):
        assert response.text() == f"So.\n{wrong.text}\nWell."
    assert response.tool_calls() == []
    (record,) = caplog.records
    assert record.getMessage() == (
        "the answer holds a call that can't be made, as text: its JSON can't be read"
    )
    assert response.response_json["invalid_calls"] == [
        {"name": "add", "text": wrong.text, "error": wrong.error}
    ]
    check_replayed(scripted, response)


def test_law_14_llms_loop_tells_the_model_that_there_is_no_such_tool(scripted, caplog):
    call = InvalidCall("stare", '{"name": "stare"}', "no tool has this name", "x1", {"at": "ü"})
    scripted.answers = [
        [ReasoningDelta("Hm."), call, CallName("c1", "look"), CallArguments("c1", "{}")],
        [TextDelta("Oh.")],
    ]
    first, second = MlxCached().chain("Go.", tools=[look]).responses()
    assert second.text() == "Oh."
    assert [(one.name, one.arguments) for one in first.tool_calls()] == [
        ("stare", {"at": "ü"}),
        ("look", {}),
    ]
    results = [message for message in scripted.requests[1].messages if message.role == "tool"]
    assert [result.content for result in results] == [
        'Error: tool "stare" does not exist',
        "nothing here",
    ]
    assert not caplog.records
    check_replayed(scripted, first)


def check_replayed(scripted, response):
    """The record that the history carries is of just what the history shows."""
    chain = [*response.prompt.messages, *response.messages()]
    MlxCached().prompt(messages=[*chain, llm.user("And?")]).text()
    answer = next(m for m in scripted.requests[-1].messages if m.role == "assistant")
    assert answer.unchanged("scripted")
