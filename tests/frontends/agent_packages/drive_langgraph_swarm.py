"""langgraph-swarm: two agents that hand over to each other, over several turns of one thread."""

import pytest
from driven_agents import Drive, texts
from langchain.agents import create_agent
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph_swarm import create_handoff_tool, create_swarm
from real_families import Played, every_family
from scripted_model import RUNS

pytestmark = [
    pytest.mark.usefixtures("shared_views"),
    # Each agent has a system prompt of its own over the one conversation, which is told once.
    pytest.mark.filterwarnings("ignore:reuse lost"),
]


def add(a: int, b: int) -> str:
    """Add two numbers."""
    return f"The sum is {a + b}"


def script(played):
    return {
        "I want to speak to Bob.": played.calls(("transfer_to_bob", {})),
        "Successfully transferred to Bob": played.words("Ahoy, I am Bob."),
        "What is 5 + 7?": played.calls(("transfer_to_alice", {})),
        "Successfully transferred to Alice": played.calls(("add", {"a": 5, "b": 7})),
        "The sum is 12": played.words("It is 12."),
        "And 1 + 2?": played.calls(("add", {"a": 1, "b": 2})),
        "The sum is 3": played.words("It is 3."),
    }


def swarm(chat, saver):
    alice = create_agent(
        chat,
        [add, create_handoff_tool(agent_name="Bob")],
        system_prompt="You are Alice, an addition expert.",
        name="Alice",
    )
    bob = create_agent(
        chat,
        [create_handoff_tool(agent_name="Alice", description="Transfer to Alice, she can add")],
        system_prompt="You are Bob, you speak like a pirate.",
        name="Bob",
    )
    made = create_swarm([alice, bob], default_active_agent="Alice")
    return made.compile(checkpointer=saver)


@pytest.mark.parametrize("family", every_family())
def test_two_agents_over_three_turns(family, tmp_path, own_cache, monkeypatch):
    monkeypatch.setenv(RUNS, str(tmp_path / "runs"))
    played = Played(family)
    drive = Drive(played, played.folder(tmp_path / "model", script(played)), tmp_path / "runs")
    thread = {"configurable": {"thread_id": "1"}}
    for words, last in (
        ("I want to speak to Bob.", "Ahoy, I am Bob."),
        ("What is 5 + 7?", "It is 12."),
        ("And 1 + 2?", "It is 3."),
    ):
        # Each turn from what the one before it left in the file.
        with SqliteSaver.from_conn_string(str(tmp_path / "swarm.db")) as saver:
            state = swarm(drive.chat, saver).invoke({"messages": [("user", words)]}, thread)
        assert state["messages"][-1].text == last
    assert state["active_agent"] == "Alice"
    assert texts(state["messages"], "tool") == [
        "Successfully transferred to Bob",
        "Successfully transferred to Alice",
        "The sum is 12",
        "The sum is 3",
    ]
    drive.check(calls=7, continued=5)
