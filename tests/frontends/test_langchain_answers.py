"""The engine's events as LangChain's messages and chunks."""

import asyncio

import pytest
from langchain_core.messages import (
    messages_from_dict,
    messages_to_dict,
)
from scripted_engine import finished, merged

from langchain_adapter import ChatMLXCached
from langchain_adapter.messages import from_langchain
from llm_mlx_promptcache.chat.messages import ToolCall
from llm_mlx_promptcache.engine.events import (
    CallArguments,
    CallName,
    Logprob,
    Progress,
    ReasoningDelta,
    TextDelta,
    TokenLogprobs,
)

SPOKEN = [
    Progress(20, 20, 12),
    ReasoningDelta("Let me "),
    ReasoningDelta("see."),
    TextDelta("I "),
    TextDelta("add."),
    CallName("c1", "add"),
    CallArguments("c1", '{"a": 1, '),
    CallArguments("c1", '"b": 2}'),
    CallName("c2", "clock"),
    CallArguments("c2", "{}"),
    finished(
        "I add.",
        [ToolCall("add", {"a": 1, "b": 2}, "c1"), ToolCall("clock", {}, "c2")],
        reasoning="Let me see.",
    ),
]


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_a_stream_put_together_is_the_invocation(engine, version):
    engine.events = SPOKEN
    chat = ChatMLXCached(output_version=version)
    whole, chunks = chat.invoke("Hi."), list(chat.stream("Hi."))
    streamed = merged(chunks)

    async def both():
        return await chat.ainvoke("Hi."), [chunk async for chunk in chat.astream("Hi.")]

    awaited, later = asyncio.run(both())
    for one in (streamed, awaited, merged(later)):
        assert one.tool_calls == whole.tool_calls
        assert one.additional_kwargs == whole.additional_kwargs
        assert one.usage_metadata == whole.usage_metadata
        assert one.response_metadata == whole.response_metadata
        assert _plain(one.content_blocks) == _plain(whole.content_blocks)
        assert list(from_langchain([one])) == list(from_langchain([whole]))
    kinds = [block["type"] for block in whole.content_blocks]
    assert kinds == ["reasoning", "text", "tool_call", "tool_call"]
    assert [call["name"] for call in whole.tool_calls] == ["add", "clock"]
    assert sum(chunk.usage_metadata is not None for chunk in chunks) == 1
    assert chunks[-1].chunk_position == "last"
    assert engine.ended == 4


def test_one_call_may_want_blocks(engine):
    engine.events = SPOKEN
    of_model, of_call = ChatMLXCached(output_version="v1"), ChatMLXCached()
    whole = of_model.invoke("Hi.")
    assert [block["type"] for block in whole.content][-2:] == ["tool_call", "tool_call"]
    one = of_call.invoke("Hi.", output_version="v1")
    assert (one.content, one.response_metadata) == (whole.content, whole.response_metadata)
    streamed = merged(list(of_call.stream("Hi.", output_version="v1")))
    wanted = merged(list(of_model.stream("Hi.")))
    assert _plain(streamed.content) == _plain(wanted.content)
    assert streamed.tool_calls == wanted.tool_calls == whole.tool_calls


def _plain(blocks):
    return [{k: v for k, v in block.items() if k != "index"} for block in blocks]


def test_text_after_a_call_stays_text_in_blocks(engine):
    call = ToolCall("clock", {}, "c1")
    spoken = [TextDelta("So:"), CallName("c1", "clock"), CallArguments("c1", "{}")]
    engine.events = [*spoken, TextDelta(" Done."), finished("So: Done.", [call])]
    streamed = merged(list(ChatMLXCached(output_version="v1").stream("Hi.")))
    assert streamed.text == "So: Done."
    assert [call["name"] for call in streamed.tool_calls] == ["clock"]


def test_usage_and_metadata(engine):
    likely = TokenLogprobs(
        Logprob(5, "He", -0.1), (Logprob(5, "He", -0.1), Logprob(6, "A", -2.0, (65,)))
    )
    engine.events = [
        finished("Hello", logprobs=(likely,), peak_bytes=7, stopped_by="!", from_disk=5)
    ]
    answer = ChatMLXCached(model="some/mine").invoke("Hi.")
    assert answer.usage_metadata == {
        "input_tokens": 20,
        "output_tokens": 3,
        "total_tokens": 23,
        "input_token_details": {"cache_read": 12},
        "output_token_details": {"reasoning": 1},
    }
    told = answer.response_metadata
    assert (told["model_name"], told["model_provider"]) == ("some/mine", "mlx-cached")
    assert told["cache"] == {
        "read": 12,
        "from_memory": 7,
        "from_disk": 5,
        "prefilled": 8,
        "state": "new",
        "why": "told off after token 12",
    }
    assert (told["finish_reason"], told["stop_sequence"], told["peak_bytes"]) == ("stop", "!", 7)
    assert told["logprobs"]["content"][0]["top_logprobs"][1] == {
        "token": "A",
        "bytes": [65],
        "logprob": -2.0,
    }
    assert ChatMLXCached()._get_ls_params()["ls_provider"] == told["model_provider"]


def test_the_record_of_an_answer_survives_storage_and_streams(engine):
    engine.events = SPOKEN
    chat = ChatMLXCached()
    for answer in (chat.invoke("Hi."), merged(list(chat.stream("Hi.")))):
        (stored,) = messages_from_dict(messages_to_dict([answer]))
        (message,) = from_langchain([stored])
        assert message.generated.ids == (5, 6, 2)
        assert message.unchanged("model")
        edited = stored.model_copy(update={"content": "I won't."})
        assert not next(from_langchain([edited])).unchanged("model")


def test_a_reader_who_stops_frees_the_engine(engine):
    engine.events = [TextDelta("a"), TextDelta("b"), finished("ab")]
    chat = ChatMLXCached()
    stream = chat.stream("Hi.")
    next(stream)
    stream.close()

    async def first():
        later = chat.astream("Hi.")
        await anext(later)
        await later.aclose()

    asyncio.run(first())
    assert engine.ended == 2
