"""Requests and events survive JSON, and nothing else is made of it."""

import json

import pytest

from llm_mlx_promptcache.chat.messages import Generated, Message, ToolCall
from llm_mlx_promptcache.engine.events import (
    CallArguments,
    Finished,
    Loading,
    Logprob,
    Progress,
    ReasoningDelta,
    TextDelta,
    Timings,
    TokenLogprobs,
    Usage,
)
from llm_mlx_promptcache.engine.request import GenerationRequest, Sampling
from llm_mlx_promptcache.engine.wire import from_json, to_json
from llm_mlx_promptcache.models.kv_settings import KVSettings

TOOL = {"type": "function", "function": {"name": "magic", "parameters": {"type": "object"}}}
CALL = ToolCall("magic", {"is": "Message", "of": [1, {"x": None}]}, "call_1")
REQUEST = GenerationRequest(
    (
        Message("system", "Be\nshort."),
        Message("user", "One? 🌍", name="me", metadata={"a": [1]}),
        Message(
            "assistant",
            "x",
            Generated.of([1, 2], "x", "f", tool_calls=(CALL,), rendered={"now": "today"}),
            reasoning="hm",
            tool_calls=(CALL,),
        ),
        Message("tool", "3", tool_call_id="call_1", is_error=True),
    ),
    sampling=Sampling(temperature=0.5, seed=0, logit_bias=((3, -1.5),)),
    stop=("a", "b"),
    tools=(TOOL,),
    tool="magic",
    schema={"type": "object"},
    kv=KVSettings(8, 32, 100),
    thinking=False,
    template_arguments={"style": {"is": "Nobody"}},
    logprobs=3,
)


def through(value):
    return from_json(json.loads(json.dumps(to_json(value))))


def test_a_request_survives():
    assert through(REQUEST) == REQUEST


def test_the_events_of_an_answer_survive(tiny_llama, engine_of):
    request = GenerationRequest(
        (Message("user", "One?"),), tools=(TOOL,), tool="magic", logprobs=2, max_tokens=90
    )
    events = list(engine_of(tiny_llama(context=4096)).generate(request))
    assert [through(event) for event in events] == events
    assert {type(event) for event in events} >= {Progress, Finished}
    for event in (TextDelta("x"), Loading("Fetching x", 1, 2), Loading("x", aloud=False)):
        assert through(event) == event


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"is": "Path", "of": {"x": 1}},
        {"is": "eval", "of": {}},
        {"is": "TextDelta", "of": {"no": 1}},
        {"is": "TextDelta", "of": ["x"]},
        {"is": "Sampling", "of": {"top_p": 3}},
        {"is": ["x"], "of": {}},
    ],
)
def test_what_is_none_of_ours_is_refused(data):
    with pytest.raises(ValueError, match=r"of ours|top_p is 3"):
        from_json(data)


def test_no_repr_of_an_event_shows_text():
    likely = Logprob(1, "secret", -0.5)
    finished = Finished(
        (4711, 4712),
        "secret",
        "stop",
        Usage(1, 0, 1, 2),
        Timings(0.0, 0.0, 0.0),
        "nothing is stored",
        "f",
        reasoning="secret",
        tool_calls=(ToolCall("magic", {"word": "secret"}, "call_1"),),
        rendered={"now": "secret"},
        logprobs=(TokenLogprobs(likely, (likely,)),),
    )
    deltas = [TextDelta("secret"), ReasoningDelta("secret"), CallArguments("c1", '{"a": "secret"}')]
    shown = repr([*deltas, finished, likely])
    assert "secret" not in shown
    assert "4711" not in shown
    assert "TextDelta(6 characters)" in shown
    assert "Usage(prompt=1" in shown
