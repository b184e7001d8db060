"""ChatMLXCached through LangChain's own interface."""

import asyncio
import json
import os
import subprocess
import sys
from typing import Literal

import forks
import pytest
from langchain_core.messages import (
    AIMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    messages_to_dict,
    trim_messages,
)
from langchain_core.runnables import RunnableParallel
from langchain_core.tools import tool

from langchain_adapter import ChatMLXCached
from llm_mlx_promptcache.engine import pool
from llm_mlx_promptcache.engine.pool import close_engines

ASK = [SystemMessage("You answer in one word."), HumanMessage("Which colour has the sky?")]
AGAIN = HumanMessage("And the grass?")


@tool
def look(way: Literal["north", "south"]) -> str:
    """Look around."""
    return "a wall"


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
    command = [forks.python(), "-c", NEXT_PROCESS]
    done = subprocess.run(command, input=told, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def told(message):
    """The metadata of an answer, without what differs from run to run."""
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


def test_salts_share_with_themselves_only(model):
    one, other = (ChatMLXCached(model=str(model), max_tokens=2, cache_salt=n) for n in "ab")
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


LONG = SystemMessage("You keep the library of the harbour and know each book in it. " * 20)


def prefilled(answers):
    return [answer.response_metadata["cache"]["prefilled"] for answer in answers]


def together(chat, count=16):
    """Answers to so many questions that are asked at once under one long system prompt."""

    async def ask():
        asked = [[LONG, HumanMessage(f"Where is book {n}?")] for n in range(count)]
        return await asyncio.gather(*[chat.ainvoke(question) for question in asked])

    return asyncio.run(ask())


def test_sixteen_at_once_prefill_their_system_prompt_once(model):
    chat = ChatMLXCached(model=str(model), max_tokens=6)
    answers = together(chat)
    assert len(answers) == 16
    prompt = answers[0].usage_metadata["input_tokens"]
    assert prompt > 1000
    # One of them computes all of its prompt; the others what comes behind the system prompt.
    *others, most = sorted(prefilled(answers))
    assert most == prompt
    assert max(others) < 60
    alone = ChatMLXCached(model=str(model), max_tokens=6, use_cache=False)
    assert alone.invoke([LONG, HumanMessage("Where is book 3?")]).content == answers[3].content


def test_runnables_in_parallel_share_one_cache(model):
    chat = ChatMLXCached(model=str(model), max_tokens=4)
    ways = RunnableParallel(one=chat, other=chat.bind(max_tokens=2))
    answers = ways.invoke([LONG, HumanMessage("Where?")])
    assert min(prefilled(answers.values())) <= 2


def test_warming_leaves_only_the_question_to_prefill(model):
    chat = ChatMLXCached(model=str(model), max_tokens=4)
    assert chat.warm([LONG], tools=[look]) > 1000
    bound = chat.bind_tools([look])
    assert prefilled([bound.invoke([LONG, HumanMessage("Where?")])])[0] < 60
    assert asyncio.run(chat.awarm([LONG], tools=[look])) > 1000
    elsewhere = ChatMLXCached(model=str(model), max_tokens=4, cache_salt="else")
    assert prefilled([elsewhere.bind_tools([look]).invoke([LONG, AGAIN])])[0] > 1000


@pytest.mark.parametrize("way", ["warm", "awarm"])
def test_what_is_warmed_is_pinned(model, way):
    chat = ChatMLXCached(model=str(model), max_tokens=4)
    tokens = getattr(chat, way)([LONG])
    assert (tokens if way == "warm" else asyncio.run(tokens)) > 100
    chat.invoke("Something else")
    pool.close_engines()
    spans = pool.disk_store().listing().spans
    assert {span.tier for span in spans if span.pinned} == {"system"}
    assert not all(span.pinned for span in spans)


def test_tokens_are_counted_as_a_call_counts_them(model):
    chat = ChatMLXCached(model=str(model), max_tokens=100, max_calls=1)
    bound = chat.bind_tools([look], tool_choice="any")
    first = bound.invoke(ASK)
    result = ToolMessage("a wall", tool_call_id=first.tool_calls[0]["id"])
    second = bound.invoke([*ASK, first, result])
    told = [answer.usage_metadata["input_tokens"] for answer in (first, second)]
    conversations = (ASK, [*ASK, first, result])
    assert [chat.get_num_tokens_from_messages(c, tools=[look]) for c in conversations] == told
    assert chat.get_num_tokens_from_messages(ASK) < told[0]
    assert chat.get_num_tokens_from_messages([]) == 0
    assert chat.get_token_ids("Hello") == chat.get_token_ids("Hello Hello")[:1]
    most = chat.get_num_tokens_from_messages([*ASK, first, result]) - 1
    kept = trim_messages([*ASK, first, result], max_tokens=most, token_counter=chat)
    assert 0 < len(kept) < 4


def test_tokens_are_counted_without_weights(tmp_path, tiny_llama):
    folder = tiny_llama()
    (folder / "model.safetensors").unlink()
    code = (
        "import sys; from langchain_adapter import ChatMLXCached as C; chat = C(model=sys.argv[1]);"
    )
    code += "from langchain_core.messages import HumanMessage;"
    code += "print(chat.get_num_tokens_from_messages([HumanMessage('Hi.')]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 5


def test_the_core_does_without_langchain():
    code = (
        "import sys; sys.modules['langchain_core'] = None;"
        "import llm_mlx_promptcache.plugin, llm_mlx_promptcache.engine.pool, llm_mlx_promptcache;"
        "print(sorted(n for n in sys.modules if n.startswith('langchain')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['langchain_core']"


def test_l11_a_model_that_answers_stays(own_cache, tiny_llama):
    chat = ChatMLXCached(model=str(tiny_llama()), max_tokens=200)
    answer = chat.stream("Hi.")
    first = next(answer)
    assert not chat.unload()
    assert chat._engine().loaded
    whole = sum(answer, first)
    assert whole.usage_metadata["output_tokens"] > 1
    assert chat.unload()
    assert not chat._engine().loaded
