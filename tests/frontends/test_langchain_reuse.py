"""Reuse as LangChain's users see it: healthy or lost, in which of their messages, and why."""

import asyncio
import warnings

import pytest
from langchain_core.messages import (
    AIMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    messages_from_dict,
    messages_to_dict,
    trim_messages,
)
from langgraph.graph import START, MessagesState, StateGraph
from real_families import Played, every_family
from scripted_engine import finished

from langchain_adapter import ChatMLXCached
from langchain_adapter.messages import from_langchain, index_of
from langchain_adapter.reuse import cache_metadata
from llm_mlx_promptcache.engine import notes
from llm_mlx_promptcache.engine.draft_probe import DraftProof
from llm_mlx_promptcache.engine.events import Reuse

pytestmark = pytest.mark.usefixtures("shared_views")

SYSTEM = SystemMessage("You keep a lighthouse, and answer in few words of a sailor's.")
SAID = "The light burns, and the sea is calm tonight."
FAMILIES = {one.id: one for one in every_family()}


@pytest.fixture(autouse=True)
def nobody_was_told(monkeypatch):
    monkeypatch.setattr(notes, "_told", {})


def chat_of(family, place):
    played = Played(FAMILIES[family].values[0])
    return ChatMLXCached(model=str(played.folder(place / "m", {"": played.words(SAID)})))


@pytest.fixture
def chat(tmp_path, own_cache):
    return chat_of("Llama 3.1", tmp_path)


def state(answer):
    cache = answer.response_metadata["cache"]
    return cache["state"], cache.get("reason"), cache.get("message"), cache.get("role")


def talk(chat, messages, turns, change=lambda messages, turn: None):
    """The states of so many turns, and how many warnings there were."""
    states = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for turn in range(turns):
            messages.append(HumanMessage(f"Question {turn}: what do you see?"))
            change(messages, turn)
            answer = chat.invoke(messages)
            messages.append(answer)
            states.append(state(answer)[:3])
    return states, [str(one.message) for one in told]


HEALTHY = ("healthy", None, None)
NEW = ("new", None, None)


def test_healthy_turns_say_so_and_warn_of_nothing(chat):
    states, told = talk(chat, [SYSTEM], 6)
    assert states == [NEW] + [HEALTHY] * 5
    assert told == []


def test_l7_a_system_prompt_with_the_time_in_it_is_warned_of_once(chat):
    def stamp(messages, turn):
        messages[0] = SystemMessage(f"It is {turn} o'clock. You keep a lighthouse.")

    messages = [SYSTEM]
    states, told = talk(chat, messages, 5, stamp)
    assert states == [NEW] + [("lost", "system", 0)] * 4
    (warning,) = told
    assert warning.startswith("reuse lost at messages[0] (system): the system prompt is not what")
    assert "o'clock" not in warning
    assert "lighthouse" not in str(messages[-1].response_metadata)
    # The conversation remembers that, wherever it is stored.
    stored = messages_from_dict(messages_to_dict(messages))
    notes._told.clear()
    assert talk(chat, stored, 2, stamp)[1] == []
    # Another one has a warning of its own.
    other = [SYSTEM, HumanMessage("Who goes there?"), AIMessage("A friend.")]
    assert len(talk(chat, other, 3, stamp)[1]) == 1


def test_a_turn_that_is_asked_again_is_warned_of_once(chat):
    messages = [SYSTEM, HumanMessage("Is it lit?")]
    messages += [chat.invoke(messages), HumanMessage("And the sea?")]
    messages[0] = SystemMessage("You keep a harbour.")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for place in ("harbour", "boat", "mill"):
            messages[0] = SystemMessage(f"You keep a {place}.")
            assert state(chat.invoke(messages))[0] == "lost"
        list(chat.stream(messages))
    assert len(told) == 1


def test_trimming_at_each_turn_is_warned_of_once(chat):
    def trim(messages, turn):
        messages[:] = trim_messages(
            messages, max_tokens=4, token_counter=len, include_system=True, start_on="human"
        )

    states, told = talk(chat, [SYSTEM], 6, trim)
    assert states[:2] == [NEW, HEALTHY]
    assert states[2:] == [("lost", "removed", 1)] * 4
    assert len(told) == 1


def test_nodes_with_roles_of_their_own_and_those_that_share_a_prompt(chat):
    def graph(own):
        made = StateGraph(MessagesState)
        for name in ("writer", "critic"):
            role = SystemMessage(f"You are the {name}, and say little.") if own else SYSTEM
            made.add_node(
                name, lambda state, r=role: {"messages": [chat.invoke([r, *state["messages"]])]}
            )
        made.add_edge(START, "writer")
        made.add_edge("writer", "critic")
        return made.compile()

    asked = {"messages": [HumanMessage("What do you see?")]}
    shared = graph(own=False).invoke(asked)["messages"]
    assert [state(one)[0] for one in shared[1:]] == ["new", "healthy"]
    with pytest.warns(UserWarning, match="the system prompt is not what it was"):
        apart = graph(own=True).invoke(asked)["messages"]
    assert state(apart[2]) == ("lost", "system", 0, "system")


def test_agents_that_take_turns_lose_it_without_a_warning(chat):
    def hand_over(messages, turn):
        messages[0] = SystemMessage(f"You are agent {turn % 2}, and keep a lighthouse.")
        for message in messages:
            if isinstance(message, AIMessage):
                message.name = "keeper"  # as create_agent(name=...) does

    states, told = talk(chat, [SYSTEM], 4, hand_over)
    assert states[:2] == [NEW, ("lost", "system", 0)]
    assert told == []


@pytest.mark.parametrize("way", ["invoke", "stream", "stored"])
def test_l7_a_loss_that_was_meant_does_not_count_as_told(chat, way):
    """A summary takes the place of messages, and later the system prompt changes unmeant."""
    messages = [SYSTEM]
    talk(chat, messages, 2)
    mark = {"lc_source": "summarization"}  # as LangChain's middlewares write it
    messages[1:3] = [HumanMessage("It was calm.", additional_kwargs=mark)]
    messages.append(HumanMessage("And now?"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if way == "stream":
            chunks = list(chat.stream(messages))
            answer = sum(chunks[1:], chunks[0])
        else:
            answer = chat.invoke(messages)
    assert state(answer)[:2] == ("lost", "edited")
    messages.append(answer)
    if way == "stored":
        messages = messages_from_dict(messages_to_dict(messages))
    assert talk(chat, messages, 1) == ([HEALTHY], [])
    messages[0] = SystemMessage("You keep a harbour.")
    states, told = talk(chat, messages, 2)
    assert states[0] == ("lost", "system", 0)
    assert len(told) == 1


def test_thinking_that_goes_is_told_and_no_news(tmp_path, own_cache):
    chat = chat_of("Qwen3", tmp_path)
    states, told = talk(chat, [SYSTEM], 3)
    assert states == [NEW, ("lost", "thinking", 2), ("lost", "thinking", 4)]
    assert told == []


def test_l7_explain_says_beforehand_what_an_answer_says_then(chat):
    messages = [SYSTEM, HumanMessage("Is it lit?")]
    before = chat.explain(messages)
    assert (before["state"], before["read"]) == ("new", 0)
    messages += [chat.invoke(messages), HumanMessage("And the sea?")]
    assert chat.explain(messages) == chat.explain(messages)
    assert chat.explain(messages) == asyncio.run(chat.aexplain(messages))
    edited = [messages[0], HumanMessage("Is it dark?"), *messages[2:]]
    told = chat.explain(edited)
    assert (told["state"], told["reason"], told["message"], told["role"]) == (
        *("lost", "edited", 1),
        "user",
    )
    healthy = chat.explain(messages)
    assert healthy["state"] == "healthy"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert healthy == chat.invoke(messages).response_metadata["cache"]
    tools = [{"name": "look", "description": "Look.", "parameters": {"type": "object"}}]
    assert chat.explain(messages, tools=tools)["reason"] == "tools"


def test_explain_says_why_nothing_is_drafted(chat, monkeypatch):
    messages = [SYSTEM, HumanMessage("Is it lit?")]
    assert "undrafted" not in chat.explain(messages)
    monkeypatch.setattr(DraftProof, "known", "its layers of kind Odd can't go back")
    assert chat.explain(messages)["undrafted"] == "its layers of kind Odd can't go back"


def test_explain_counts_as_no_use_of_the_cache(chat):
    from llm_mlx_promptcache.engine import pool

    messages = [SYSTEM, HumanMessage("Is it lit?")]
    messages += [chat.invoke(messages), HumanMessage("And the sea?")]
    counted = ("hits", "misses", "tokens_reused", "tokens_prefilled", "tokens_ahead")
    before = pool.shared_cache().stats()
    chat.explain(messages)
    after = pool.shared_cache().stats()
    assert {name: after[name] for name in counted} == {name: before[name] for name in counted}


def test_streams_say_the_same(chat):
    messages = [SYSTEM, HumanMessage("Is it lit?")]
    messages += [chat.invoke(messages), HumanMessage("And the sea?")]
    chunks = list(chat.stream(messages))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert state(whole) == ("healthy", None, None, None)


def test_the_told_message_is_langchains():
    results = [{"type": "tool_result", "tool_use_id": name, "content": name} for name in "ab"]
    calls = [{"name": "look", "args": {}, "id": name} for name in "ab"]
    messages = [
        HumanMessage("Look."),
        AIMessage("", tool_calls=calls),
        HumanMessage([*results, {"type": "text", "text": "And now?"}]),
        AIMessage("So."),
        ToolMessage("late", tool_call_id="a"),
    ]
    neutral = list(from_langchain(messages))
    assert len(neutral) == 7
    assert [index_of(messages, at) for at in range(8)] == [0, 1, 2, 2, 2, 3, 4, 4]
    event = finished(reuse=Reuse("lost", "edited", 5, "assistant", 9))
    told = cache_metadata(event, messages)
    assert (told["message"], told["why"].partition(":")[0]) == (
        3,
        "lost at messages[3] (assistant)",
    )
