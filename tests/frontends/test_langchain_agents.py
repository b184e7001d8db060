"""Agents of LangChain and LangGraph: each step costs its own new tokens, whatever comes between."""

import json
import os
import sqlite3
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import ToolException, tool
from langgraph.checkpoint.sqlite import SqliteSaver

from langchain_adapter import ChatMLXCached
from llm_mlx_promptcache.engine.pool import close_engines

SYSTEM = "You explore a cave and say where you are."
ASK = {"messages": [HumanMessage("Find the way out.")]}
STEPS = 10


@tool
def look(way: Literal["north", "south"], far: bool) -> str:
    """Look into the cave."""
    return f"{way}: a wall{' far away' if far else ''}"


def digging():
    """A tool that fails at every second call."""
    calls = []

    @tool
    def dig(way: Literal["up", "down"]) -> str:
        """Dig; the rock may be too hard."""
        calls.append(way)
        if len(calls) % 2:
            return f"dug {way}"
        raise ToolException(f"the rock is too hard to dig {way}")

    dig.handle_tool_error = True
    return dig


class Tireless(AgentMiddleware):
    """A random model calls nothing of its own accord: it must, for so many steps, and then not."""

    def wrap_model_call(self, request, handler):
        done = sum(isinstance(message, AIMessage) for message in request.messages)
        return handler(request.override(tool_choice="any" if done < STEPS else "none"))


def agent_of(model, tools=(look,), saver=None, one_step=False, **settings):
    return create_agent(
        ChatMLXCached(model=str(model), max_tokens=200, **{"max_calls": 1, **settings}),
        list(tools),
        system_prompt=SYSTEM,
        middleware=[Tireless()],
        checkpointer=saver,
        interrupt_before=["model"] if one_step else None,
    )


def saver_of(folder):
    return SqliteSaver(sqlite3.connect(folder / "agent.db", check_same_thread=False))


def answers(state):
    return [message for message in state["messages"] if isinstance(message, AIMessage)]


def read(answer):
    return answer.usage_metadata["input_token_details"]["cache_read"]


def check_steps(found, steps=STEPS + 1):
    """Each step read the whole path before it: what it prefilled is what was new."""
    assert len(found) == steps
    for before, after in pairwise(found):
        assert read(after) == before.usage_metadata["total_tokens"]
        new = after.usage_metadata["input_tokens"] - before.usage_metadata["total_tokens"]
        assert after.response_metadata["cache"]["prefilled"] == new


@pytest.fixture
def model(own_cache, tiny_llama):
    return tiny_llama(context=8192)


def test_ten_steps_prefill_what_is_new(model):
    found = answers(agent_of(model).invoke(ASK, {"recursion_limit": 50}))
    check_steps(found)
    assert [len(answer.tool_calls) for answer in found] == [1] * STEPS + [0]


def test_ten_steps_with_two_calls_at_once_and_a_tool_that_fails(model):
    state = agent_of(model, [digging()], max_calls=2).invoke(ASK, {"recursion_limit": 50})
    check_steps(answers(state))
    assert any(len(answer.tool_calls) == 2 for answer in answers(state))
    status = [message.status for message in state["messages"] if isinstance(message, ToolMessage)]
    assert {"error", "success"} == set(status)


def one_process(model, folder, given, config):
    """One step of an agent, by what a process that ends with it has: files, and nothing else."""
    saver = saver_of(folder)
    state = agent_of(model, saver=saver, one_step=True).invoke(given, config)
    saver.conn.close()
    close_engines()
    return answers(state)


def test_a_restart_between_any_two_steps(model, tmp_path):
    config = {"configurable": {"thread_id": "1"}}
    found = one_process(model, tmp_path, ASK, config)
    while len(found) <= STEPS:
        found = one_process(model, tmp_path, None, config)
    check_steps(found)


NEXT_PROCESS = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import test_langchain_agents as tests
found = tests.one_process(sys.argv[2], Path(sys.argv[3]), None, json.loads(sys.argv[4]))
json.dump([tests.read(found[-1]), found[-2].usage_metadata["total_tokens"]], sys.stdout)
"""


def test_another_process_goes_on_where_this_one_stopped(model, tmp_path):
    config = {"configurable": {"thread_id": "1"}}
    one_process(model, tmp_path, ASK, config)
    one_process(model, tmp_path, None, config)
    told = [str(Path(__file__).parent), str(model), str(tmp_path), json.dumps(config)]
    moved = "ignore:this model's chat template has no place"
    command = [sys.executable, "-W", "error", "-W", moved, "-c", NEXT_PROCESS, *told]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    cached, path = json.loads(done.stdout)
    assert cached == path


def test_an_edited_state_is_reused_up_to_the_edit(model, tmp_path):
    config = {"configurable": {"thread_id": "1"}, "recursion_limit": 50}
    agent = agent_of(model, saver=saver_of(tmp_path))
    state = agent.invoke(ASK, config)
    results = [message for message in state["messages"] if isinstance(message, ToolMessage)]
    fifth = answers(state)[4]
    # Back to where the fifth result had just come, which now says something else.
    then = next(
        past
        for past in agent.get_state_history(config)
        if past.values.get("messages", [None])[-1] == results[4]
    )
    edited = results[4].model_copy(update={"content": "a door"})
    fork = agent.update_state(then.config, {"messages": [edited]}, as_node="tools")
    forked = answers(agent.invoke(None, {**fork, "recursion_limit": 50}))
    assert forked[4] == fifth
    check_steps(forked[6:], STEPS - 5)
    shared = fifth.usage_metadata["total_tokens"]
    assert shared <= read(forked[5]) < forked[5].usage_metadata["input_tokens"]
    # No more than the result's own beginning is shared beyond what went before it.
    assert read(forked[5]) <= read(answers(state)[5]) + 60


def test_a_rewritten_answer_is_taken_as_it_reads_now(model):
    """A rewritten answer keeps our record, which must not be replayed for other words."""
    chat = ChatMLXCached(model=str(model), max_tokens=8)
    asked = [("system", SYSTEM), ("human", "Where are you?")]
    first = chat.invoke(asked)
    hidden = first.model_copy(update={"content": "[redacted]"})
    told = [chat.invoke([*asked, answer, ("human", "And now?")]) for answer in (first, hidden)]
    plain = chat.invoke([*asked, ("ai", "[redacted]"), ("human", "And now?")])
    assert read(told[0]) == first.usage_metadata["total_tokens"]
    assert told[1].usage_metadata["input_tokens"] == plain.usage_metadata["input_tokens"]
    assert read(told[1]) < first.usage_metadata["total_tokens"]
    assert told[1].content == plain.content
