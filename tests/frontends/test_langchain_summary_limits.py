"""Summaries by tokens: when they are due, how much is kept, and what does not fit."""

import asyncio
import threading

import pytest
from langchain.agents import create_agent
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from summed_up import ANSWERS, QUESTION, SUMMARY, SYSTEM, Calls, asked, shortened, tide

from langchain_mlx_cached import ChatMLXCached


def test_tokens_are_those_of_the_whole_prompt(played_chat):
    chat = played_chat()
    prompt = [SystemMessage(SYSTEM), asked(0), AIMessage("Aye."), asked(1)]
    count = chat.get_num_tokens_from_messages(prompt, [tide])
    for most, summed in ((count, 1), (count + 1, 0)):
        middleware = shortened(trigger=("tokens", most), keep=("messages", 1))
        agent = create_agent(chat, [tide], system_prompt=SYSTEM, middleware=[middleware])
        calls = Calls()
        agent.invoke({"messages": prompt[1:]}, {"callbacks": [calls]})
        assert len(calls.summaries) == summed


def test_as_many_tokens_are_kept_as_is_said(played_chat):
    chat = played_chat()
    history = [message for n in range(6) for message in (asked(n), AIMessage("Aye."))]
    sizes = []
    for most in (1, 300, 700):
        middleware = shortened(trigger=("messages", 3), keep=("tokens", most))
        agent = create_agent(chat, [], middleware=[middleware])
        messages = agent.invoke({"messages": [*history, asked(7)]})["messages"]
        sizes.append(chat.get_num_tokens_from_messages(messages[1:-1]))
    # The last message always stays; what the others weigh is estimated.
    last = chat.get_num_tokens_from_messages([asked(7)])
    assert sizes[0] == last < 200 < sizes[1] <= 330 < 500 < sizes[2] <= 770
    part = shortened(trigger=("messages", 3), keep=("fraction", 700 / 32768))
    agent = create_agent(chat, [], middleware=[part])
    messages = agent.invoke({"messages": [*history, asked(7)]})["messages"]
    assert chat.get_num_tokens_from_messages(messages[1:-1]) == sizes[2]


def test_a_counter_of_ones_own_is_asked(played_chat):
    seen = []

    def count(messages):
        seen.append(len(messages))
        return 10 * len(messages)

    history = [message for n in range(3) for message in (asked(n), AIMessage("Aye."))]
    middleware = shortened(trigger=("tokens", 70), keep=("tokens", 20), token_counter=count)
    agent = create_agent(played_chat(), [], middleware=[middleware])
    messages = agent.invoke({"messages": [*history, asked(7)]})["messages"]
    assert len(messages) == 4
    assert seen[0] == 7


def test_a_conversation_that_does_not_fit_is_summed_up_and_goes_on(played_chat):
    chat = played_chat(context=600)
    agent = create_agent(chat, [], middleware=[shortened(trigger=None)])
    history = [message for n in range(12) for message in (asked(n), AIMessage("Aye."))]
    with pytest.raises(ContextOverflowError):
        chat.invoke([*history, asked(12)])
    calls = Calls()
    messages = agent.invoke({"messages": [*history, asked(12)]}, {"callbacks": [calls]})["messages"]
    assert messages[-1].text == "Aye."
    assert messages[0].text.endswith(SUMMARY)
    # All but what is kept, and not too long to be read: more than once, since it is that much.
    assert len(calls.summaries) >= 2
    assert messages[-2].text == asked(12).text


def test_more_stays_where_a_summary_of_all_has_no_space(played_chat):
    """The prompt fits, and the question behind it would not: nothing is left out unread."""
    chat = played_chat()
    history = [message for n in range(4) for message in (asked(n), AIMessage("Aye."))]
    count = chat.get_num_tokens_from_messages([*history, asked(4)])
    chat = played_chat(context=count + 5)
    middleware = shortened(
        trigger=("messages", 9), keep=("messages", 1), summary_prompt=QUESTION * 9
    )
    calls = Calls()
    agent = create_agent(chat, [], middleware=[middleware])
    state = agent.invoke({"messages": [*history, asked(4)]}, {"callbacks": [calls]})
    [summary] = calls.summaries
    assert summary.response_metadata["finish_reason"] == "stop"
    # Some of the eight messages before the last stay.
    assert 3 < len(state["messages"]) < 10
    assert [one.text for one in state["messages"][-2:]] == [asked(4).text, "Aye."]


def test_a_summary_that_the_contexts_end_would_cut_is_asked_of_less(played_chat):
    chat, long = played_chat(), QUESTION * 9
    history = [message for n in range(4) for message in (asked(n), AIMessage("Aye."))]
    count = chat.get_num_tokens_from_messages([*history, HumanMessage(long)])
    chat = played_chat(context=count + 3)
    middleware = shortened(trigger=("messages", 9), keep=("messages", 1), summary_prompt=long)
    messages = create_agent(chat, [], middleware=[middleware]).invoke(
        {"messages": [*history, asked(4)]}
    )["messages"]
    assert messages[0].text.endswith(SUMMARY)
    assert 3 < len(messages) < 10


def test_what_does_not_fit_is_halved_where_all_of_it_would_be_kept(played_chat):
    chat = played_chat(context=1200)
    middleware = shortened(trigger=None, keep=("messages", 20))
    history = [message for n in range(8) for message in (asked(n), AIMessage("Aye."))]
    agent = create_agent(chat, [], middleware=[middleware])
    messages = agent.invoke({"messages": [*history, asked(8)]})["messages"]
    assert messages[0].text.endswith(SUMMARY)
    assert len(messages) >= 8
    assert [one.text for one in messages[-2:]] == [asked(8).text, "Aye."]


def test_one_message_that_is_too_long_is_an_overflow(played_chat):
    agent = create_agent(played_chat(context=300), [], middleware=[shortened()])
    with pytest.raises(ContextOverflowError, match="shorten the prompt"):
        agent.invoke({"messages": [HumanMessage("far " * 400)]})


def test_a_summary_that_is_cut_is_told(played_chat):
    chat = played_chat({**ANSWERS, QUESTION: SUMMARY * 40})
    history = [message for n in range(5) for message in (asked(n), AIMessage("Aye."))]
    agent = create_agent(chat, [], middleware=[shortened()])
    with pytest.warns(UserWarning, match="cut by max_tokens"):
        agent.invoke({"messages": [*history, asked(5)]})
    longer = shortened(model=chat.model_copy(update={"max_tokens": 900}))
    messages = create_agent(chat, [], middleware=[longer]).invoke({"messages": history})["messages"]
    assert messages[0].text.endswith(SUMMARY * 40)


def test_an_event_loop_counts_no_tokens(played_chat, monkeypatch):
    threads, count = [], ChatMLXCached.get_num_tokens_from_messages
    monkeypatch.setattr(
        ChatMLXCached,
        "get_num_tokens_from_messages",
        lambda *given: (threads.append(threading.get_ident()), count(*given))[1],
    )
    chat = played_chat(context=1100)
    history = [message for n in range(8) for message in (asked(n), AIMessage("Aye."))]
    ways = [  # one that is due, and one that does not fit
        (shortened(trigger=("tokens", 500)), history[:8]),
        (shortened(trigger=None, keep=("tokens", 300)), history),
    ]

    async def run(middleware, messages):
        calls = Calls()
        agent = create_agent(chat, [], middleware=[middleware])
        await agent.ainvoke({"messages": [*messages, asked(9)]}, {"callbacks": [calls]})
        return calls, threading.get_ident()

    for middleware, messages in ways:
        threads.clear()
        calls, loop = asyncio.run(run(middleware, messages))
        assert calls.summaries
        assert threads
        assert loop not in threads
