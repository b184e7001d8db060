"""langchain-mcp-adapters: tools of a real server in a process of its own, over stdio."""

import sys
from pathlib import Path

import pytest
from driven_agents import Drive, texts
from langchain.agents import create_agent
from langchain_core.exceptions import ModelInvalidRequestError
from langchain_mcp_adapters.client import MultiServerMCPClient
from langchain_mcp_adapters.tools import load_mcp_tools
from langgraph.checkpoint.memory import InMemorySaver
from real_families import Played, every_family
from scripted_model import RUNS, SPLIT

pytestmark = pytest.mark.usefixtures("shared_views")

SERVER = str(Path(__file__).with_name("mcp_server.py"))
CONNECTION = {"command": sys.executable, "args": [SERVER], "transport": "stdio"}


def script(played):
    return {
        "What is (3 + 5) x 12?": played.calls(("add", {"a": 3, "b": 5})),
        "The sum is 8": played.calls(("multiply", {"a": 8, "b": 12})),
        "The product is 96": played.words(f"It is nine{SPLIT}ty-six."),
        "Now divide it by 0.": played.calls(("divide", {"a": 96, "b": 0})),
        "nothing can be divided by 0": played.words("That can't be done."),
        "Where is Oslo?": played.calls(("locate", {"place": {"name": "Oslo", "kind": "city"}})),
        "59.9": played.words("In the north."),
        "Draw a dot.": played.calls(("draw", {})),
        "image/png": played.words("There it is."),
    }


async def ask(agent, words):
    thread = {"configurable": {"thread_id": "1"}}
    return await agent.ainvoke({"messages": [("user", words)]}, thread)


@pytest.mark.parametrize("family", every_family())
async def test_tools_errors_and_objects(family, tmp_path, own_cache, monkeypatch):
    monkeypatch.setenv(RUNS, str(tmp_path / "runs"))
    played = Played(family)
    drive = Drive(played, played.folder(tmp_path / "model", script(played)), tmp_path / "runs")
    client = MultiServerMCPClient({"math": CONNECTION})
    async with client.session("math") as session:
        tools = await load_mcp_tools(session)
        agent = create_agent(drive.chat, tools, checkpointer=InMemorySaver())
        assert (await ask(agent, "What is (3 + 5) x 12?"))["messages"][
            -1
        ].text == "It is ninety-six."
        divided = await ask(agent, "Now divide it by 0.")
        assert divided["messages"][-1].text == "That can't be done."
        state = await ask(agent, "Where is Oslo?")
    assert state["messages"][-1].text == "In the north."
    results = [one for one in state["messages"] if one.type == "tool"]
    assert [one.status for one in results] == ["success", "success", "error", "success"]
    assert texts(state["messages"], "tool")[:2] == ["The sum is 8", "The product is 96"]
    assert "nothing can be divided by 0" in results[2].text
    drive.check(calls=7, continued=6)


async def test_a_picture_is_refused_by_name(tmp_path, own_cache):
    played = Played(every_family()[0].values[0])
    drive = Drive(played, played.folder(tmp_path / "model", script(played)), tmp_path / "runs")
    tools = await MultiServerMCPClient({"math": CONNECTION}).get_tools()
    agent = create_agent(drive.chat, tools, checkpointer=InMemorySaver())
    with pytest.raises(ModelInvalidRequestError, match=r"messages\[2\] holds a 'image' block"):
        await ask(agent, "Draw a dot.")


async def test_a_picture_as_a_line_of_words(tmp_path, own_cache, monkeypatch):
    monkeypatch.setenv(RUNS, str(tmp_path / "runs"))
    played = Played(every_family()[0].values[0])
    model = played.folder(tmp_path / "model", script(played))
    drive = Drive(played, model, tmp_path / "runs", tool_media="placeholder")
    tools = await MultiServerMCPClient({"math": CONNECTION}).get_tools()
    agent = create_agent(drive.chat, tools, checkpointer=InMemorySaver())
    assert (await ask(agent, "Draw a dot."))["messages"][-1].text == "There it is."
    drive.check(calls=2, continued=1)
