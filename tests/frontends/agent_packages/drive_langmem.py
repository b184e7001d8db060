"""langmem: memories kept and searched by an agent, drawn out of a talk, and talks summed up."""

import pytest
from driven_agents import Drive
from langchain.agents import create_agent
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.graph.message import MessagesState
from langgraph.store.memory import InMemoryStore
from langmem import create_manage_memory_tool, create_memory_manager, create_search_memory_tool
from langmem.short_term import RunningSummary, SummarizationNode
from pydantic import BaseModel
from real_families import Played, every_family
from scripted_model import RUNS, SPLIT

pytestmark = pytest.mark.usefixtures("shared_views")

DARK = "The user likes dark mode."


def script(played):
    kept = {"content": f"The user li{SPLIT}kes dark mode.", "action": "create", "id": None}
    sought = {"query": "lighting", "limit": 10, "offset": 0, "filter": None}
    return {
        "Remember that I like dark mode.": played.calls(("manage_memory", kept)),
        "created memory": played.words("I keep that in mind."),
        "What light do I like?": played.calls(("search_memory", sought)),
        DARK: played.words("You like it dark."),
    }


@pytest.mark.parametrize("family", every_family())
def test_memories_of_an_agent(family, tmp_path, own_cache, monkeypatch):
    monkeypatch.setenv(RUNS, str(tmp_path / "runs"))
    played = Played(family)
    drive = Drive(played, played.folder(tmp_path / "model", script(played)), tmp_path / "runs")
    store = InMemoryStore()
    agent = create_agent(
        drive.chat,
        [create_manage_memory_tool(("memories",)), create_search_memory_tool(("memories",))],
        system_prompt="You remember.",
        store=store,
        checkpointer=InMemorySaver(),
    )
    for thread, words, last in (
        ("1", "Remember that I like dark mode.", "I keep that in mind."),
        ("2", "What light do I like?", "You like it dark."),
        ("1", "What light do I like?", "You like it dark."),
    ):
        given = {"messages": [("user", words)]}
        state = agent.invoke(given, {"configurable": {"thread_id": thread}})
        assert state["messages"][-1].text == last
    [memory] = store.search(("memories",))
    assert memory.value == {"content": DARK}
    drive.check(calls=6, continued=4)


class Likes(BaseModel):
    """A thing that the user likes."""

    what: str
    much: bool


@pytest.mark.parametrize("family", every_family())
def test_memories_drawn_out_of_a_talk(family, tmp_path, own_cache, monkeypatch):
    monkeypatch.setenv(RUNS, str(tmp_path / "runs"))
    played = Played(family)
    likes = played.calls(("Likes", {"what": "dark mode", "much": True}))
    drive = Drive(played, played.folder(tmp_path / "model", likes), tmp_path / "runs")
    manager = create_memory_manager(drive.chat, schemas=[Likes], enable_inserts=True)
    [found] = manager.invoke({"messages": [{"role": "user", "content": "I love dark mode!"}]})
    assert found.content == Likes(what="dark mode", much=True)
    drive.check(calls=1, continued=0)


class Talk(MessagesState):
    """A talk, and what is summed up of it."""

    context: dict[str, RunningSummary]
    short: list


@pytest.mark.filterwarnings("ignore:reuse lost")  # the summary stands in front
@pytest.mark.parametrize("family", every_family())
def test_talks_summed_up(family, tmp_path, own_cache, monkeypatch):
    """The prompt for a summary begins with the talk itself, so its question is all that is new."""
    monkeypatch.setenv(RUNS, str(tmp_path / "runs"))
    played = Played(family)
    answers = {
        "": played.words("A rhyme about cats, and many more words that nobody needs to read."),
        "summary of the conversation above": played.words("Rhymes on animals."),
        "Extend this summary": played.words("Rhymes on animals, and more."),
    }
    drive = Drive(played, played.folder(tmp_path / "model", answers), tmp_path / "runs")
    short = SummarizationNode(
        token_counter=lambda messages: sum(len(one.text.split()) for one in messages),
        model=drive.chat.bind(max_tokens=64),
        max_tokens=60,
        max_tokens_before_summary=45,
        max_summary_tokens=10,
        output_messages_key="short",
    )
    graph = StateGraph(Talk)
    graph.add_node("sum up", short)
    graph.add_node("answer", lambda state: {"messages": [drive.chat.invoke(state["short"])]})
    graph.add_edge(START, "sum up").add_edge("sum up", "answer")
    app = graph.compile(checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "1"}}
    for what in ("cats", "dogs", "owls", "bees", "eels", "bats", "rats"):
        state = app.invoke({"messages": [("user", f"Write a rhyme about {what}, please.")]}, thread)
    assert state["context"]["running_summary"].summary.startswith("Rhymes on animals")
    drive.check(calls=9, continued=5)
