"""Nothing that was generated is lost: what `llm` keeps and says of answers that were cut."""

import asyncio
import json
import sqlite3
from contextlib import closing

import llm
import pytest

from llm_mlx_promptcache.chat.generated import InvalidCall
from llm_mlx_promptcache.engine.events import (
    CallArguments,
    CallName,
    Progress,
    ReasoningDelta,
    TextDelta,
    Usage,
)
from llm_mlx_promptcache.llm_adapter.models import AsyncMlxCached, MlxCached

LENGTH = {"reason": "length", "usage": Usage(10, 6, 4, 7)}
HALF = {**LENGTH, "cut": "a call of a tool"}
TOLD = [CallName("c1", "look"), CallArguments("c1", '{"at": '), CallArguments("c1", '"x')]
WHOLE = [CallName("c0", "look"), CallArguments("c0", '{"at": "y"}')]
WRITTEN = InvalidCall("look", '<call>{"name": "look", "at": "x', "it ended here", "c1")


def look(at: str = "here") -> str:
    """Look somewhere."""
    return f"nothing {at}"


def ask(model, **more):
    """A response to its end, whichever kind of model is asked."""
    if isinstance(model, MlxCached):
        response = model.prompt("Go.", **more)
        response.text()
        return response

    async def awaited():
        response = model.prompt("Go.", **more)
        await response.text()
        return await response.to_sync_response()

    return asyncio.run(awaited())


EVERY = pytest.mark.parametrize("model", [MlxCached(), AsyncMlxCached()], ids=["sync", "async"])


def lines(caplog):
    return [record.getMessage() for record in caplog.records]


def check_replayed(scripted, response):
    """The record that the history carries is of just what the history shows."""
    chain = [*response.prompt.messages, *response._messages_now()]
    MlxCached().prompt(messages=[*chain, llm.user("And?")]).text()
    answer = next(m for m in scripted.requests[-1].messages if m.role == "assistant")
    assert answer.unchanged("scripted")
    return answer


@EVERY
@pytest.mark.parametrize("stream", [True, False])
def test_c1_half_a_document_is_an_answer_and_marked(scripted, caplog, model, stream):
    scripted.answers = [[TextDelta('{"a"')]]
    scripted.end = {**LENGTH, "cut": "a JSON document"}
    schema = {"type": "object"}
    response = ask(model, schema=schema, stream=stream, options={"max_tokens": 7})
    assert response.text() == '{"a"'
    assert response.response_json["finish_reason"] == "length"
    assert response.response_json["cut"] == "a JSON document"
    assert lines(caplog) == [
        "the answer was cut inside a JSON document after 7 tokens (max_tokens is 7)"
    ]
    check_replayed(scripted, response)


@pytest.mark.parametrize(
    ("options", "end", "why"),
    [
        ({"max_tokens": 7}, LENGTH, "max_tokens is 7"),
        ({}, {**LENGTH, "usage": Usage(10, 6, 4, 8192)}, "max_tokens is 8192 unless you say more"),
        ({}, LENGTH, "the model's context is full"),
        ({"unlimited": True, "max_tokens": 7}, LENGTH, "the model's context is full"),
        ({"stop": "b"}, {"cut": "a JSON document", "stopped_by": "b"}, "a stop string"),
    ],
)
def test_c2_the_line_says_what_cut_it(scripted, caplog, options, end, why):
    scripted.end = end
    MlxCached().prompt("Go.", **options).text()
    (line,) = lines(caplog)
    assert why in line


def test_an_answer_that_ended_itself_is_not_told_of(scripted, caplog):
    scripted.answers = [[TextDelta("Yes.")], []]
    assert [MlxCached().prompt("Go.").text() for _ in range(2)] == ["Yes.", ""]
    assert lines(caplog) == []


def test_reasoning_that_was_cut_is_kept(scripted, caplog, logged):
    scripted.answers = [[ReasoningDelta("Hm, ")]]
    scripted.end = LENGTH
    response = MlxCached().prompt("Go.", max_tokens=7)
    logged.log(response)
    assert lines(caplog) == [
        "the answer was cut inside its reasoning after 7 tokens (max_tokens is 7)"
    ]
    assert check_replayed(scripted, response).reasoning == "Hm, "


@EVERY
@pytest.mark.parametrize(
    ("said", "end", "text"),
    [
        # It was told piece by piece, or nothing of it was known until the end.
        ([TextDelta("So."), *TOLD], {"half_call": WRITTEN}, f"So.\n{WRITTEN.text}"),
        ([TextDelta("So.")], {"half_call": WRITTEN}, f"So.\n{WRITTEN.text}"),
        (TOLD, {"invalid_calls": (WRITTEN,)}, WRITTEN.text),
        (TOLD, {}, 'look {"at": "x'),
        ([CallName("c1", "look")], {"tool_calls": ()}, "look"),
    ],
)
def test_half_a_call_is_text_and_never_a_call(scripted, caplog, model, said, end, text):
    scripted.answers = [said]
    scripted.end = {**HALF, **end}
    response = ask(model, tools=[look], options={"max_tokens": 7})
    assert response.text() == text
    assert response.tool_calls() == []
    (message,) = response._messages_now()
    assert {part.to_dict()["type"] for part in message.parts} == {"text"}
    assert lines(caplog) == [
        "the answer was cut inside a call of a tool after 7 tokens (max_tokens is 7)"
    ]
    if end and said != [CallName("c1", "look")]:
        (told,) = response.response_json["invalid_calls"]
        assert told["text"] == WRITTEN.text
    check_replayed(scripted, response)


def test_whole_calls_before_half_a_call_are_calls(scripted):
    scripted.answers = [[*WHOLE, *TOLD], [TextDelta("Oh.")]]
    scripted.end = {**HALF, "half_call": WRITTEN}
    chain = MlxCached().chain("Go.", tools=[look])
    first = next(responses := chain.responses())
    assert first.text() == WRITTEN.text
    assert [(one.name, one.arguments) for one in first.tool_calls()] == [("look", {"at": "y"})]
    scripted.end = {}
    assert next(responses).text() == "Oh."
    results = [message for message in scripted.requests[1].messages if message.role == "tool"]
    assert [result.content for result in results] == ["nothing y"]
    check_replayed(scripted, first)


def test_calls_are_told_whole_and_in_their_order(scripted):
    scripted.answers = [[*WHOLE, TextDelta("So."), CallName("c2", "look")]]
    events = list(MlxCached().prompt("Go.", tools=[look]).stream_events())
    assert [(event.type, event.chunk, event.tool_call_id) for event in events] == [
        ("text", "So.", None),
        ("tool_call_name", "look", "c0"),
        ("tool_call_args", '{"at": "y"}', "c0"),
        ("tool_call_name", "look", "c2"),
        ("tool_call_args", "", "c2"),
    ]


def test_a_prefill_is_the_beginning_of_the_answer(scripted):
    scripted.answers = [[Progress(1, 2, 0), TextDelta(" it.")], []]
    first = MlxCached().prompt("Go.", prefill="Do")
    assert first.text() == "Do it."
    request = scripted.requests[0]
    assert request.continue_final
    assert [(m.role, m.content) for m in request.messages] == [("user", "Go."), ("assistant", "Do")]
    # Where its tokens are not the answer's alone nothing is replayed that would leave it out.
    chain = [*first.prompt.messages, *first.messages()]
    second = MlxCached().prompt(messages=[*chain, llm.user("And?")], prefill="Do")
    assert second.text() == "Do"
    answer = next(m for m in scripted.requests[1].messages if m.role == "assistant")
    assert (answer.content, answer.unchanged("scripted")) == ("Do it.", False)


def test_a_prefill_begins_no_answer_to_a_tools_result(scripted):
    scripted.answers = [WHOLE, [TextDelta("Oh.")]]
    chain = MlxCached().chain("Go.", tools=[look], options={"prefill": "Well"})
    assert [one.text() for one in chain.responses()] == ["Well", "Oh."]
    assert [request.continue_final for request in scripted.requests] == [True, False]


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"schema": {"type": "object"}}, "a schema"),
        ({"options": {"json_object": True}}, "json_object"),
        ({"tools": [look], "options": {"tool_choice": "look"}}, "tool_choice look"),
    ],
)
def test_a_prefill_and_a_form_are_refused(scripted, more, what):
    options = {"prefill": "Well", **more.pop("options", {})}
    with pytest.raises(ValueError, match=f"prefill and {what} can't be combined"):
        MlxCached().prompt("Go.", options=options, **more).text()
    assert scripted.requests == []


@pytest.mark.parametrize("word", ["required", "any", "look"])
def test_a_forced_call_without_tools_is_refused(scripted, word):
    with pytest.raises(ValueError, match="tool_choice is"):
        MlxCached().prompt("Go.", tool_choice=word).text()
    MlxCached().prompt("Go.", tools=[look], tool_choice=word).text()
    assert len(scripted.requests) == 1
    assert scripted.requests[0].tool_choice == "any"
    assert scripted.requests[0].tool == ("look" if word == "look" else "")


def test_c9_words_that_no_model_can_read_are_refused_in_a_users_words(scripted):
    latin_1 = "caf\udce9"  # as Python reads a byte of stdin that is no UTF-8
    with pytest.raises(ValueError, match=r"not UTF-8 \(character 4 of it\).*iconv"):
        MlxCached().prompt(latin_1).text()
    with pytest.raises(ValueError, match="the prompt is empty"):
        MlxCached().prompt("").text()
    assert scripted.requests == []


def test_a_cut_answer_is_in_llms_log(scripted, logged):
    scripted.end = {**LENGTH, "cut": "a JSON document"}
    logged.log(MlxCached().prompt("Go."))
    with closing(sqlite3.connect(logged.path)) as database:
        (told,) = database.execute("select response_json from turns").fetchone()
    assert json.loads(told)["cut"] == "a JSON document"
