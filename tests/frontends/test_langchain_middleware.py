"""LangChain's own middlewares in an agent of two turns: which keep the prefix, which do not."""

from itertools import pairwise

import pytest
from driven_agents import Drive
from langchain.agents import create_agent
from langchain.agents.middleware import (
    ClearToolUsesEdit,
    ContextEditingMiddleware,
    HumanInTheLoopMiddleware,
    LLMToolSelectorMiddleware,
    ModelCallLimitMiddleware,
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
    PIIMiddleware,
    TodoListMiddleware,
    ToolCallLimitMiddleware,
    ToolRetryMiddleware,
)
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from played_families import FAMILIES
from real_families import Played
from scripted_model import RUNS

from langchain_adapter import ChatMLXCached

pytestmark = pytest.mark.usefixtures("shared_views")

LLAMA = Played(next(one for one in FAMILIES if one.name == "Llama 3.1"))


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"Mild in {city}, says ann@example.org"


@tool
def get_time(city: str) -> str:
    """The time in a city."""
    return f"Noon in {city}"


def weather(city):
    return LLAMA.calls(("get_weather", {"city": city}))


SCRIPT = {
    "Paris and Rome?": weather("Paris"),
    "Mild in Paris": weather("Rome"),
    "Mild in Rome": "Both are mild.",
    "And Oslo?": weather("Oslo"),
    "Mild in Oslo": "Oslo is mild.",
    "And the time in Oslo?": LLAMA.calls(("get_time", {"city": "Oslo"})),
    "Noon in Oslo": "It is noon.",
}


class Agent:
    """An agent with one middleware, or none, and how many tokens of earlier paths it lost."""

    def __init__(self, folder, make):
        model = LLAMA.folder(folder / "model", SCRIPT)
        self.drive = Drive(LLAMA, model, folder / "runs", max_tokens=100)
        self._agent = create_agent(
            self.drive.chat,
            [get_weather, get_time],
            system_prompt="You know the weather.",
            middleware=make(self.drive.chat),
            checkpointer=InMemorySaver(),
        )

    def ask(self, words):
        thread = {"configurable": {"thread_id": "1"}}
        state = self._agent.invoke({"messages": [("user", words)]}, thread)
        while "__interrupt__" in state:
            state = self._agent.invoke(Command(resume={"decisions": [{"type": "approve"}]}), thread)
        return state["messages"][-1].text

    def lost(self):
        """Tokens that each call after the first has not of the path of the call before it."""
        made = self.drive.calls.made
        return [before.total - after.read for before, after in pairwise(made)]


KEEP = {
    "none": lambda chat: [],
    "human in the loop": lambda chat: [HumanInTheLoopMiddleware({"get_weather": True})],
    "tool retry": lambda chat: [ToolRetryMiddleware()],
    "model retry": lambda chat: [ModelRetryMiddleware()],
    "model fallback": lambda chat: [ModelFallbackMiddleware(chat)],
    "tool call limit": lambda chat: [ToolCallLimitMiddleware(run_limit=5)],
    "model call limit": lambda chat: [ModelCallLimitMiddleware(run_limit=5)],
    "to-do list": lambda chat: [TodoListMiddleware()],
    "pii of the user": lambda chat: [PIIMiddleware("email", strategy="redact")],
    "pii of results": lambda chat: [PIIMiddleware("email", apply_to_tool_results=True)],
}


@pytest.mark.parametrize("kind", KEEP)
def test_what_keeps_the_prefix(kind, tmp_path, own_cache, monkeypatch):
    monkeypatch.setenv(RUNS, str(tmp_path / "runs"))
    agent = Agent(tmp_path, KEEP[kind])
    assert agent.ask("Paris and Rome?") == "Both are mild."
    assert agent.ask("And Oslo?") == "Oslo is mild."
    assert agent.lost() == [0, 0, 0, 0]
    agent.drive.check(calls=5, continued=4)


def test_results_that_are_cleared_cost_what_stands_behind_them(tmp_path, own_cache, monkeypatch):
    monkeypatch.setenv(RUNS, str(tmp_path / "runs"))
    edit = ClearToolUsesEdit(trigger=1, keep=1)
    agent = Agent(tmp_path, lambda chat: [ContextEditingMiddleware(edits=[edit])])
    with pytest.warns(UserWarning, match=r"reuse lost at messages\[3\] \(tool\)"):
        assert agent.ask("Paris and Rome?") == "Both are mild."
    assert agent.ask("And Oslo?") == "Oslo is mild."
    # The first result, and later the second: each time the answer behind it too.
    first, second, third, fourth = agent.lost()
    assert (first, third) == (0, 0)
    assert second > 0
    assert fourth > 0
    agent.drive.check(calls=5, continued=4, replayed=False)


def test_a_selector_of_tools_costs_the_prompt_when_it_selects_others(
    tmp_path, own_cache, monkeypatch
):
    selected = {
        "Paris and Rome?": '{"tools": ["get_weather"]}',
        "And the time in Oslo?": '{"tools": ["get_time"]}',
    }
    selector = ChatMLXCached(model=str(LLAMA.folder(tmp_path / "selector", selected)))
    monkeypatch.setenv(RUNS, str(tmp_path / "runs"))
    agent = Agent(tmp_path, lambda chat: [LLMToolSelectorMiddleware(model=selector, max_tools=1)])
    assert agent.ask("Paris and Rome?") == "Both are mild."
    assert set(agent.lost()) == {0}
    with pytest.warns(UserWarning, match="reuse lost"):
        assert agent.ask("And the time in Oslo?") == "It is noon."
    # It parts from the path among the tools, which stand before all that was said.
    first, changed = agent.drive.calls.made[0], agent.drive.calls.made[3]
    assert changed.read < first.answer.usage_metadata["input_tokens"]
