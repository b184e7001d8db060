"""Law 15: ChatMLXCached says the same in the host's process as in its own."""

import asyncio

import forks
import host_of
import pytest
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel
from real_families import Played, every_family
from scripted_model import SPLIT, environment

from langchain_adapter import ChatMLXCached
from llm_mlx_promptcache.engine import notes, pool
from llm_mlx_promptcache.host import start

# What depends on where and when an answer was made.
_OWN = {"id", "usage_metadata", "response_metadata", "tool_call_chunks"}
QWEN = [one for one in every_family() if one.id == "Qwen3"]


class Place(BaseModel):
    """A place."""

    a: int


@tool
def find_place(city: str, days: int) -> str:
    """Find a place in a city."""
    return f"Found {city} {days}"


@pytest.fixture(params=QWEN)
def chats(request, tmp_path, monkeypatch):
    """The same model twice: in a host's process, and in this one, with a cache for each."""
    played = Played(request.param)
    answers = {
        "Plan it.": played.calls(("find_place", {"city": "Zürich", "days": 2})),
        "Found": played.words(f"It takes 2 da{SPLIT}ys. 🌍"),
        "Wrong words.": played.calls(("find_place", {"city": 3, "days": "many"})),
        "A document.": '{"a": 5}',
        "": played.words("Nothing else."),
    }
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LLM_MLX_CACHED_KEEP", "1h")
    monkeypatch.setattr(start, "host_command", lambda: [forks.host(), *forks.HOST])
    model = str(played.folder(tmp_path / "model", answers))
    yield [ChatMLXCached(model=model, resident=resident) for resident in (True, False)]
    host_of.end(tmp_path / "home")
    pool.close_engines()


def told(message):
    """The content of a message, whoever said it, with its calls' ids by their places."""
    said = {k: v for k, v in message.model_dump().items() if k not in _OWN}
    ids = [call["id"] for call in message.tool_calls + message.invalid_tool_calls]
    for part in (*said["tool_calls"], *said["invalid_tool_calls"]):
        part["id"] = ids.index(part["id"])
    said["additional_kwargs"] = sorted(said["additional_kwargs"])
    said["tokens"] = message.usage_metadata["input_tokens"], message.usage_metadata["output_tokens"]
    return said


def loop(chat):
    """A call, its result, and the answer; another one streamed; each message."""
    bound = chat.bind_tools([find_place])
    asked = [HumanMessage("Plan it.")]
    call = bound.invoke(asked)
    results = [ToolMessage("Found it", tool_call_id=one["id"]) for one in call.tool_calls]
    last = bound.invoke([*asked, call, *results])
    first, *rest = chat.bind_tools([find_place]).stream("Wrong words.")
    return call, last, sum(rest, first)


def loaded_here():
    """The models that this process has in memory."""
    return {name for name, engine in pool.engines().items() if engine.loaded}


def test_law_15_messages_are_the_same_in_a_host(chats):
    before = loaded_here()
    hosted, here = (loop(chat) for chat in chats)
    for one, other in zip(hosted, here, strict=True):
        assert told(one) == told(other)
    call, last, wrong = hosted
    assert call.tool_calls
    assert "days. 🌍" in last.text
    assert wrong.invalid_tool_calls
    # A process has no model of its own for what a host answers.
    assert loaded_here() - before == {chats[1].model}


def test_law_15_documents_and_errors_are_the_same_in_a_host(chats):
    for chat in chats:
        assert chat.with_structured_output(Place).invoke("A document.") == Place(a=5)
    errors = []
    for chat in chats:
        for bad in ({"top_p": 3}, {"max_tokens": 10**9}, {"regex": "("}):
            with pytest.raises(ValueError) as caught:  # noqa: PT011 - both are compared
                chat.invoke("word " * 33_000 if "max_tokens" in bad else "Hello", **bad)
            errors.append((type(caught.value), str(caught.value)))
    assert errors[:3] == errors[3:]


def test_l11_a_model_is_unloaded_and_loads_again(chats):
    async def unload_and_ask(chat):
        assert await chat.aunload()
        return await chat.ainvoke("Found")

    for chat in chats:
        assert chat.unload()  # what was never loaded has nothing to give back
        first = chat.invoke("Found")
        assert chat._engine().loaded
        again = asyncio.run(unload_and_ask(chat))
        assert again.content == first.content
        assert again.response_metadata["timings"]["load"] > 0
        # What was computed is there still: only the last token is run again.
        usage = again.usage_metadata
        assert usage["input_token_details"]["cache_read"] == usage["input_tokens"] - 1
        assert chat.unload()
        assert not chat._engine().loaded


def test_law_15_the_loop_of_events_has_the_same(chats):
    async def ask(chat):
        assert await chat.awarm([HumanMessage("Plan it.")], tools=[find_place]) > 10
        answers = await chat.abatch(["Found"] * 4)
        streamed = [chunk async for chunk in chat.astream("Found")]
        return [told(one) for one in answers], "".join(chunk.text for chunk in streamed)

    hosted, here = (asyncio.run(ask(chat)) for chat in chats)
    assert hosted == here


def test_law_15_where_reuse_was_lost_is_told_the_same(chats, monkeypatch):
    monkeypatch.setenv("LLM_MLX_CACHED_AHEAD", "0")
    told = []
    for chat in chats:
        monkeypatch.setattr(notes, "_told", {})
        messages = [SystemMessage("You help."), HumanMessage("Hello")]
        apart = {"cache_salt": f"{chat.resident}"}  # their disk is one
        messages += [chat.invoke(messages, **apart), HumanMessage("And now?")]
        messages[0] = SystemMessage("You do not help.")
        looked = chat.explain(messages, **apart)
        with pytest.warns(UserWarning, match=r"reuse lost at messages\[0\] \(system\)"):
            lost = chat.invoke(messages, **apart).response_metadata["cache"]
        names = ("state", "reason", "message", "role", "lost", "why")
        told.append([looked[name] for name in names])
        assert told[-1] == [lost[name] for name in names]
    assert told[0] == told[1]
