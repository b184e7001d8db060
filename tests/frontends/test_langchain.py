"""ChatMLXCached through LangChain's own interface."""

import asyncio
import json
import os
import subprocess
import sys

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, messages_to_dict

from langchain_adapter import ChatMLXCached
from llm_mlx_promptcache.engine.pool import close_engines

ASK = [SystemMessage("You answer in one word."), HumanMessage("Which colour has the sky?")]
AGAIN = HumanMessage("And the grass?")

NEXT_PROCESS = """
import json, sys
from langchain_core.messages import messages_from_dict
from langchain_adapter import ChatMLXCached
told = json.load(sys.stdin)
chat = ChatMLXCached(model=told["model"], max_tokens=8)
answer = chat.invoke(messages_from_dict(told["messages"]))
json.dump({"usage": answer.usage_metadata, "text": answer.content}, sys.stdout)
"""


def next_process(model, messages):
    """Ask the same in a new process; what it says of its usage, and its answer."""
    told = json.dumps({"model": str(model), "messages": messages_to_dict(messages)})
    command = [sys.executable, "-c", NEXT_PROCESS]
    done = subprocess.run(command, input=told, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def told(message):
    """What an answer says of itself, without what differs from run to run."""
    return {
        k: v for k, v in message.response_metadata.items() if k not in ("timings", "peak_bytes")
    }


def conversation(model):
    chat = ChatMLXCached(model=str(model), max_tokens=8)
    first = chat.invoke(ASK)
    path = first.usage_metadata["total_tokens"]
    assert first.usage_metadata["input_token_details"]["cache_read"] == 0
    second = chat.invoke([*ASK, first, AGAIN])
    usage = second.usage_metadata
    assert usage["input_token_details"]["cache_read"] >= path - 1
    assert usage["input_tokens"] > path
    # The same in a new process, from the disk, through LangChain's own serialisation. Short rests
    # of an answer are written when the first process ends.
    close_engines()
    chat_again = next_process(model, [*ASK, first, AGAIN])
    assert chat_again["text"] == second.content
    cached = chat_again["usage"]["input_token_details"]["cache_read"]
    assert cached >= usage["input_tokens"] - 1
    return first, second


@pytest.fixture
def model(own_cache, tiny_llama):
    return tiny_llama()


@pytest.mark.real_model
def test_two_turns_and_a_second_process_with_the_real_model(own_cache, real_model_folder):
    first, _ = conversation(real_model_folder)
    assert "blue" in first.content.lower()


def test_two_turns_and_a_second_process(model):
    conversation(model)


def test_a_stream_tells_the_same_as_an_invocation(model):
    chat = ChatMLXCached(model=str(model), max_tokens=8, use_cache=False)
    whole, chunks = chat.invoke(ASK), list(chat.stream(ASK))
    merged = chunks[0]
    for chunk in chunks[1:]:
        merged += chunk
    assert len(chunks) > 2
    assert merged.content == whole.content
    assert merged.usage_metadata == whole.usage_metadata
    assert merged.additional_kwargs == whole.additional_kwargs
    assert told(merged) == told(whole)
    assert sum(chunk.usage_metadata is not None for chunk in chunks) == 1


def test_an_answer_that_was_edited_is_taken_as_it_reads_now(model):
    chat = ChatMLXCached(model=str(model), max_tokens=8)
    first = chat.invoke(ASK)
    edited = AIMessage("Green.", additional_kwargs=first.additional_kwargs)
    foreign = AIMessage("Green.")
    by_edit = chat.invoke([*ASK, edited, AGAIN]).usage_metadata["input_tokens"]
    assert by_edit == chat.invoke([*ASK, foreign, AGAIN]).usage_metadata["input_tokens"]


def test_namespaces_share_with_themselves_only(model):
    one, other = (ChatMLXCached(model=str(model), max_tokens=2, namespace=n) for n in "ab")
    reads = [c.invoke(ASK).usage_metadata["input_token_details"]["cache_read"] for c in (one, one)]
    assert reads[0] == 0 < reads[1]
    assert other.invoke(ASK).usage_metadata["input_token_details"]["cache_read"] == 0


def test_a_stop_string_ends_the_answer_and_the_next_turn_goes_on_from_what_was_shown(model):
    chat = ChatMLXCached(model=str(model), max_tokens=12)
    whole = chat.invoke(ASK).content
    stop = whole[len(whole) // 2 :][:2]
    cut = chat.invoke(ASK, stop=[stop])
    assert cut.content == whole[: whole.index(stop)]
    assert cut.response_metadata["finish_reason"] == "stop"
    streamed = "".join(str(chunk.content) for chunk in chat.stream(ASK, stop=[stop]))
    assert streamed == cut.content
    plain = AIMessage(cut.content)
    told = [chat.invoke([*ASK, answer, AGAIN]).content for answer in (cut, plain)]
    assert all(told)


def test_what_is_not_supported_yet_is_refused(model):
    chat = ChatMLXCached(model=str(model))
    image = HumanMessage([{"type": "image_url", "image_url": {"url": "data:,"}}])
    with pytest.raises(ValueError, match="image_url"):
        chat.invoke([image])
    with pytest.raises(ValueError, match="stop holds an empty string"):
        chat.invoke(ASK, stop=[""])
    with pytest.raises(ValueError, match="temperature is -1"):
        ChatMLXCached(model=str(model), temperature=-1).invoke(ASK)


def test_construction_loads_nothing():
    code = "import sys; from langchain_adapter import ChatMLXCached; ChatMLXCached(model='x');"
    done = subprocess.run(
        [sys.executable, "-c", code + "print('mlx.core' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


def test_async_calls_and_batches_tell_the_same(model):
    chat = ChatMLXCached(model=str(model), max_tokens=8)
    whole = chat.invoke(ASK)

    async def all_ways():
        chunks = [chunk async for chunk in chat.astream(ASK)]
        return await chat.ainvoke(ASK), chunks, await chat.abatch([ASK] * 3)

    one, chunks, batch = asyncio.run(all_ways())
    assert {one.content, "".join(c.content for c in chunks)} == {whole.content}
    assert [answer.content for answer in [*batch, *chat.batch([ASK] * 3)]] == [whole.content] * 6
    assert sum(chunk.usage_metadata is not None for chunk in chunks) == 1
