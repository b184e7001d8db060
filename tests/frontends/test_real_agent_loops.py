"""LangChain's agents with real tokenizers: weights that play a script, and tools that are run."""

from itertools import pairwise
from typing import Literal

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel
from real_families import Played, every_family
from scripted_model import RUNS, SPLIT, computed_twice, runs_of, tokens_run

from langchain_adapter import ChatMLXCached

pytestmark = pytest.mark.usefixtures("shared_views")


class Place(BaseModel):
    """A place and its position."""

    name: str
    at: dict[str, float]


def booking(booked):
    """A tool that keeps what it was called with."""

    @tool
    def book(
        guests: list[str],
        place: Place,
        kind: Literal["by_train", "by_ship"],
        days: int,
        note: str | None = None,
        code: str = "",
    ) -> str:
        """Book a trip."""
        booked.append((guests, place, kind, days, note, code))
        return f"Booked {kind}"

    return book


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"Mild in {city}"


TRAIN = {
    "guests": ["Zoë", '東京 "x"', ""],
    "place": {"name": f"Ca{SPLIT}fé </b> {{1}} & 'y'", "at": {"lat": 1.5, "lon": -2}},
    "kind": "by_train",
    "days": 3,
    "note": None,
    "code": "007",
}
SHIP = {**TRAIN, "guests": [], "kind": "by_ship", "note": "two\nlines", "code": "true"}
FLY = ("fly", {"to": "Mars"})
HERE = Place(name="Café </b> {1} & 'y'", at={"lat": 1.5, "lon": -2.0})
BOOKED = [
    (one["guests"], HERE, one["kind"], one["days"], one["note"], one["code"])
    for one in (TRAIN, SHIP)
]


def weather(city):
    return ("get_weather", {"city": city})


def script(played):
    """Two steps of calls and an answer; a turn with one call; one that must call; a wrong name.

    SPLIT where words come in other tokens than the tokenizer gives them: those must be replayed.
    """
    ship = ("book", SHIP)
    return {
        "Plan it.": played.calls(("book", TRAIN)),
        "Booked by_train": played.calls(
            *([weather("Bergen"), ship] if played.parallel else [ship])
        ),
        "Booked by_ship": played.words(f"All is boo{SPLIT}ked."),
        "And in Rome?": played.calls(weather(f"Ro{SPLIT}me")),
        "Mild in Rome": played.words("Rome is mild."),
        "You must call.": played.calls(weather("Paris")),
        "Mild in Paris": played.words("Paris is mild."),
        "Do what nobody can.": played.calls(FLY),
        "Are you there?": played.words("I am."),
    }


class Must(AgentMiddleware):
    """Forces a call where the user says so."""

    def wrap_model_call(self, request, handler):
        must = request.messages[-1].text == "You must call."
        return handler(request.override(tool_choice="any") if must else request)


class Agent:
    """An agent on one thread of one model, which keeps what it told."""

    def __init__(self, model):
        self.booked = []
        self._agent = create_agent(
            ChatMLXCached(model=str(model), max_tokens=400),
            [booking(self.booked), get_weather],
            system_prompt="You plan trips.",
            middleware=[Must()],
            checkpointer=InMemorySaver(),
        )
        self._thread = {"configurable": {"thread_id": "1"}}
        self._seen = 0

    def ask(self, words, *, streamed):
        """The answers to these words, the last one said, the others calls."""
        given = {"messages": [HumanMessage(words)]}
        said = ""
        if streamed:
            for chunk, _ in self._agent.stream(given, self._thread, stream_mode="messages"):
                said += chunk.text if isinstance(chunk, AIMessageChunk) else ""
        else:
            self._agent.invoke(given, self._thread)
        answers = self.answers()
        new, self._seen = answers[self._seen :], len(answers)
        assert said == (new[-1].text if streamed else "")
        return new

    def answers(self):
        """All answers of the thread, as its checkpoint has them."""
        messages = self._agent.get_state(self._thread).values["messages"]
        return [one for one in messages if isinstance(one, AIMessage)]


def read(answer):
    return answer.usage_metadata["input_token_details"]["cache_read"]


def called(answer):
    return [(call["name"], call["args"]) for call in answer.tool_calls]


def check_steps(played, found):
    """Each step began with the whole path before it, and ran what was new."""
    for before, after in pairwise(found if played.replays else ()):
        assert read(after) == before.usage_metadata["total_tokens"]
        new = after.usage_metadata["input_tokens"] - before.usage_metadata["total_tokens"]
        assert after.response_metadata["cache"]["prefilled"] == new


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(True, id="streamed first"),
        pytest.param(False, id="invoked first", marks=pytest.mark.soak),
    ],
)
@pytest.mark.parametrize("family", every_family())
def test_an_agent_on_one_thread(family, odd, tmp_path, own_cache, monkeypatch):
    """Half of the turns are streamed, the first where `odd` says so."""
    monkeypatch.setenv(RUNS, str(tmp_path / "runs"))
    played = Played(family)
    agent = Agent(played.folder(tmp_path / "model", script(played)))

    planned = agent.ask("Plan it.", streamed=odd)
    assert agent.booked == BOOKED
    assert [len(one.tool_calls) for one in planned] == [1, 2 if played.parallel else 1, 0]
    assert planned[-1].text == "All is booked."
    check_steps(played, planned)

    told = agent.ask("And in Rome?", streamed=not odd)
    assert [called(one) for one in told] == [[weather("Rome")], []]
    assert told[-1].text == "Rome is mild."
    check_steps(played, told)

    forced = agent.ask("You must call.", streamed=odd)
    assert [called(one) for one in forced] == [[weather("Paris")], []]
    check_steps(played, forced)

    [wrong] = agent.ask("Do what nobody can.", streamed=odd)
    assert not wrong.tool_calls
    [call], [why] = wrong.invalid_tool_calls, wrong.response_metadata["invalid_calls"]
    assert (call["name"], wrong.text) == ("fly", "")
    assert why == {"id": call["id"], "error": "no tool has this name"}
    # LangChain has answered the wrong call with an error by now.
    assert agent.ask("Are you there?", streamed=not odd)[-1].text == "I am."
    answers = agent.answers()
    if played.keeps:
        check_steps(played, answers)
    runs = runs_of(tmp_path / "runs")
    assert computed_twice(runs) == 0
    told = (one.response_metadata["cache"]["prefilled"] for one in answers)
    said = (one.usage_metadata["output_tokens"] for one in answers)
    drafts = [one.response_metadata["drafts"] for one in answers]
    wrong = sum(one["drafted"] - one["accepted"] for one in drafts)
    assert sum(told) + sum(said) + wrong == tokens_run(runs)
