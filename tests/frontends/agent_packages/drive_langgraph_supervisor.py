"""langgraph-supervisor: handoffs to two agents and back, over turns of one thread."""

import pytest
from driven_agents import Drive
from langchain.agents import create_agent
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph_supervisor import create_supervisor
from real_families import Played, every_family
from scripted_model import RUNS, SPLIT

pytestmark = [
    pytest.mark.usefixtures("shared_views"),
    # The package makes its own agent with it.
    pytest.mark.filterwarnings("ignore:create_react_agent has been moved"),
    # What it says in an agent's name has no place in some templates, which is told.
    pytest.mark.filterwarnings("ignore:this model.s chat template drops text beside calls"),
    pytest.mark.filterwarnings("ignore:this model.s chat template has no place for an answer"),
    # Each agent has a system prompt of its own over the one conversation, which is told once.
    pytest.mark.filterwarnings("ignore:reuse lost"),
]


def add(a: int, b: int) -> str:
    """Add two numbers."""
    return f"The sum is {a + b}"


def web_search(query: str) -> str:
    """Search the web for information."""
    return "Apple has 164 people, Meta has 67"


def script(played):
    return {
        "How many are they?": played.calls(("transfer_to_research_expert", {})),
        "Successfully transferred to research_expert": played.calls(
            ("web_search", {"query": f"head{SPLIT}count"})
        ),
        "Apple has 164 people, Meta has 67": played.words(f"Found: 1{SPLIT}64 and 67."),
        "Found: 164 and 67.": played.calls(("transfer_to_math_expert", {})),
        "Successfully transferred to math_expert": played.calls(("add", {"a": 164, "b": 67})),
        "The sum is 231": played.words("Together: 231."),
        "Together: 231.": played.words("They are 231."),
        "And with 9 more?": played.calls(("transfer_to_math_expert", {})),
    }


def supervisor(chat, saver, **settings):
    math = create_agent(chat, [add], name="math_expert", system_prompt="You are a math expert.")
    research = create_agent(
        chat, [web_search], name="research_expert", system_prompt="You search. Do no math."
    )
    flow = create_supervisor(
        [research, math], model=chat, prompt="You manage two experts.", **settings
    )
    return flow.compile(checkpointer=saver)


@pytest.mark.parametrize("mode", ["last_message", "full_history"])
@pytest.mark.parametrize("family", every_family())
def test_two_experts(family, mode, tmp_path, own_cache, monkeypatch):
    monkeypatch.setenv(RUNS, str(tmp_path / "runs"))
    played = Played(family)
    drive = Drive(played, played.folder(tmp_path / "model", script(played)), tmp_path / "runs")
    thread = {"configurable": {"thread_id": "1"}}
    for words in ("How many are they?", "And with 9 more?"):
        with SqliteSaver.from_conn_string(str(tmp_path / "team.db")) as saver:
            app = supervisor(drive.chat, saver, output_mode=mode)
            state = app.invoke({"messages": [("user", words)]}, thread)
        assert state["messages"][-1].text == "They are 231."
    # Without the full history the mathematician's own first call is not in the state.
    drive.check(calls=11, continued=8 if mode == "full_history" else 7)


@pytest.mark.parametrize("family", every_family())
def test_one_handoff_at_a_time(family, tmp_path, own_cache, monkeypatch):
    """Of two handoffs in one answer the package carries out one; `max_calls=1` has one made."""
    monkeypatch.setenv(RUNS, str(tmp_path / "runs"))
    played = Played(family)
    if not played.parallel:
        pytest.skip("an answer of this family has one call")
    both = played.calls(("transfer_to_research_expert", {}), ("transfer_to_math_expert", {}))
    model = played.folder(tmp_path / "model", {**script(played), "Ask both.": both})
    drive = Drive(played, model, tmp_path / "runs", max_calls=1)
    app = supervisor(drive.chat, None)
    state = app.invoke({"messages": [("user", "Ask both.")]})
    said = {one.text for one in state["messages"]}
    assert {"Found: 164 and 67.", "Together: 231.", "They are 231."} <= said
    drive.check(calls=7, continued=4, replayed=False)


@pytest.mark.parametrize("family", every_family())
def test_names_in_the_text(family, tmp_path, own_cache, monkeypatch):
    """`include_agent_name="inline"` rewrites the answers, so the supervisor's are not replayed."""
    monkeypatch.setenv(RUNS, str(tmp_path / "runs"))
    played = Played(family)
    drive = Drive(played, played.folder(tmp_path / "model", script(played)), tmp_path / "runs")
    app = supervisor(drive.chat, None, include_agent_name="inline")
    app.invoke({"messages": [("user", "How many are they?")]})
    shown = drive.calls.made[-1].messages
    assert "<name>math_expert</name><content>Together: 231.</content>" in {m.text for m in shown}
    drive.check(calls=7, continued=2)
