"""Ways to write the same program, and the tokens that each of them has prefilled.

Shared by test_langchain_recipes.py, where the counts are assertions, and by benchmarks/recipes.py,
which writes them into docs/recipes.md. Each way runs with a `cache_salt` of its own, so that none
finds what another left.
"""

from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any, NamedTuple

from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import (
    BaseMessage,
    HumanMessage,
    SystemMessage,
    get_buffer_string,
    trim_messages,
)
from pydantic import BaseModel

from langchain_mlx_cached import ChatMLXCached, PrefixKeepingSummarization

TURNS = 6
SYSTEM = (
    "You keep the harbour's book. Ships come for rope, canvas, tar and water, and you know who lies"
    " at which quay, since when, and what is owed. Rope is sold by the fathom, canvas by the yard,"
    " tar by the barrel; water is free to whoever carries it. The inner quay takes ships of up to"
    " ten feet, the outer quay all others, and the mole none between October and March. Answer in"
    " one sentence, name ships in full, and say so where the book has nothing."
)
PAGE = (
    "Page {n} of the book. The brig Marigold, nine feet, from Harwich, took {n} fathoms of rope and"
    " two barrels of tar, and owes for one. The ketch Anne came in from Dover behind her and took"
    " water. On the {n}th the wind went round to the north-east, the mole was closed for the night,"
    " and the pilot was called to a schooner that bore no name. She left before noon. The"
    " chandler asks that canvas be kept for the lugger Hope, which has lain at the outer quay since"
    " the spring and has paid for it."
)
ANSWER = "The Marigold lies at the inner quay, and owes for one barrel of tar."
DOCUMENT = '{"ship": "Marigold", "owes": 1}'
CALL = '<tool_call>\n{"name": "Debt", "arguments": {"ship": "Marigold", "owes": 1}}\n</tool_call>'
SUMMARY = "The user asks about the Marigold, which lies at the inner quay and owes for a barrel."
IN_A_DOCUMENT, BY_A_CALL = "Write it down as a document.", "Write it down by calling."
SUM_UP = "Sum up the conversation in a few sentences."
# What a played model says, by what stands last in its prompt.
ANSWERS = {"": ANSWER, IN_A_DOCUMENT: DOCUMENT, BY_A_CALL: CALL, SUM_UP: SUMMARY}
ROLES = (
    "You are the clerk: say what is owed.",
    "You are the pilot: say which quay is safe.",
    "You are the chandler: say what must be kept.",
)


class Debt(BaseModel):
    """A ship's debt in the book."""

    ship: str
    owes: int


class Cost(NamedTuple):
    """One call of the model: tokens of its prompt, those that were computed, and its answer's."""

    prompt: int
    prefilled: int
    generated: int


class Way(NamedTuple):
    """One way to do something; `run` does it with a chat model, and `best` is the recipe."""

    recipe: str
    name: str
    best: bool
    run: Callable[[ChatMLXCached], object]


class Counted(BaseCallbackHandler):
    """The costs of each call of a model, those of agents and middleware included."""

    def __init__(self) -> None:
        self.costs: list[Cost] = []

    def on_llm_end(self, response: Any, **given: Any) -> None:
        """Note what an answer cost."""
        usage = response.generations[0][0].message.usage_metadata
        read = usage["input_token_details"]["cache_read"]
        prompt = usage["input_tokens"]
        self.costs.append(Cost(prompt, prompt - read, usage["output_tokens"]))


WAYS: list[Way] = []


def way(recipe: str, name: str, *, best: bool = False) -> Callable[[Any], Any]:
    """Make a function one of the ways."""

    def listed(run: Callable[[ChatMLXCached], object]) -> Callable[[ChatMLXCached], object]:
        WAYS.append(Way(recipe, name, best, run))
        return run

    return listed


def measured(one: Way, chat: ChatMLXCached) -> list[Cost]:
    """The costs of a way's calls, in their order."""
    counted = Counted()
    given = {"callbacks": [counted], "cache_salt": f"{one.recipe}: {one.name}"}
    one.run(chat.model_copy(update=given))
    return counted.costs


def question(number: int) -> str:
    """The user's question."""
    return f"Question {number}: what does the book say of the Marigold on page {number}?"


def said(chat: Any, messages: Sequence[BaseMessage], text: str) -> list[BaseMessage]:
    """The conversation after one more turn."""
    asked = [*messages, HumanMessage(text)]
    return [*asked, chat.invoke(asked)]


@way("time stamps", "first in the system prompt")
def stamp_first(chat: ChatMLXCached) -> None:
    history: list[BaseMessage] = []
    for n in range(TURNS):
        system = SystemMessage(f"It is 12:{n:02} now. {SYSTEM}")
        history = said(chat, [system, *history], question(n))[1:]


@way("time stamps", "last in the system prompt")
def stamp_last(chat: ChatMLXCached) -> None:
    history: list[BaseMessage] = []
    for n in range(TURNS):
        system = SystemMessage(f"{SYSTEM} It is 12:{n:02} now.")
        history = said(chat, [system, *history], question(n))[1:]


@way("time stamps", "in the user's message, and stays there", best=True)
def stamp_in_message(chat: ChatMLXCached) -> None:
    history: list[BaseMessage] = [SystemMessage(SYSTEM)]
    for n in range(TURNS):
        history = said(chat, history, f"{question(n)} (It is 12:{n:02} now.)")


@way("documents", "in the system prompt, others for each question")
def documents_in_system(chat: ChatMLXCached) -> None:
    history: list[BaseMessage] = []
    for n in range(TURNS):
        system = SystemMessage(f"{SYSTEM}\n\n{PAGE.format(n=n)}")
        history = said(chat, [system, *history], question(n))[1:]


@way("documents", "in the user's message, and removed from the history")
def documents_left_out(chat: ChatMLXCached) -> None:
    history: list[BaseMessage] = [SystemMessage(SYSTEM)]
    for n in range(TURNS):
        answer = said(chat, history, f"{PAGE.format(n=n)}\n\n{question(n)}")[-1]
        history = [*history, HumanMessage(question(n)), answer]


@way("documents", "in the user's message, and stays there", best=True)
def documents_kept(chat: ChatMLXCached) -> None:
    history: list[BaseMessage] = [SystemMessage(SYSTEM)]
    for n in range(TURNS):
        history = said(chat, history, f"{PAGE.format(n=n)}\n\n{question(n)}")


@way("many questions of one text", "the question before the text")
def question_first(chat: ChatMLXCached) -> None:
    for n in range(TURNS):
        said(chat, [SystemMessage(SYSTEM)], f"{question(n)}\n\n{PAGE.format(n=1)}")


@way("many questions of one text", "the text before the question", best=True)
def text_first(chat: ChatMLXCached) -> None:
    for n in range(TURNS):
        said(chat, [SystemMessage(SYSTEM)], f"{PAGE.format(n=1)}\n\n{question(n)}")


@way("roles", "a system prompt for each role")
def role_in_system(chat: ChatMLXCached) -> None:
    history: list[BaseMessage] = []
    for n, role in enumerate(islice(cycle(ROLES), TURNS)):
        history = said(chat, [SystemMessage(f"{role} {SYSTEM}"), *history], question(n))[1:]


@way("roles", "one system prompt, the role in the last message", best=True)
def role_in_message(chat: ChatMLXCached) -> None:
    history: list[BaseMessage] = [SystemMessage(SYSTEM)]
    for n, role in enumerate(islice(cycle(ROLES), TURNS)):
        history = said(chat, history, f"{role} {question(n)}")


def tool_of(name: str) -> dict[str, Any]:
    """A tool as models are shown them."""
    text = {"type": "string", "description": f"Which {name}, as the book spells it."}
    shape = {"type": "object", "properties": {name: text}, "required": [name]}
    about = f"Look a {name} up in the book, and tell all that it says."
    return {
        "type": "function",
        "function": {"name": f"find_{name}", "description": about, "parameters": shape},
    }


TOOLS = [tool_of(name) for name in ("ship", "quay", "debt", "pilot", "cargo", "wind")]


@way("tools", "only those that each question needs")
def tools_chosen(chat: ChatMLXCached) -> None:
    history: list[BaseMessage] = [SystemMessage(SYSTEM)]
    for n in range(TURNS):
        bound = chat.bind_tools([TOOLS[n], TOOLS[(n + 1) % 6], TOOLS[(n + 2) % 6]])
        history = said(bound, history, question(n))


@way("tools", "all of them, in any order, and the choice by `tool_choice`", best=True)
def tools_all(chat: ChatMLXCached) -> None:
    history: list[BaseMessage] = [SystemMessage(SYSTEM)]
    for n in range(TURNS):
        choice = "none" if n % 2 else "auto"
        bound = chat.bind_tools([*TOOLS[n:], *TOOLS[:n]], tool_choice=choice)
        history = said(bound, history, question(n))


def an_object_late(chat: ChatMLXCached, method: Any, wish: str) -> None:
    history: list[BaseMessage] = [SystemMessage(SYSTEM)]
    for n in range(TURNS - 2):
        history = said(chat, history, question(n))
    chat.with_structured_output(Debt, method=method).invoke([*history, HumanMessage(wish)])
    said(chat, history, question(TURNS))


@way("an object out of a conversation", '`method="function_calling"`')
def by_function_calling(chat: ChatMLXCached) -> None:
    an_object_late(chat, "function_calling", BY_A_CALL)


@way("an object out of a conversation", '`method="json_schema"`', best=True)
def by_json_schema(chat: ChatMLXCached) -> None:
    an_object_late(chat, "json_schema", IN_A_DOCUMENT)


def talked(chat: ChatMLXCached) -> list[BaseMessage]:
    """A conversation that has gone on for some turns."""
    history: list[BaseMessage] = [SystemMessage(SYSTEM)]
    for n in range(3):
        history = said(chat, history, f"{PAGE.format(n=n)}\n\n{question(n)}")
    return history


@way("sub-agents and forks", "the history retold as text, under a system prompt of its own")
def retold(chat: ChatMLXCached) -> None:
    history = talked(chat)
    for role in ROLES:
        text = get_buffer_string(history[1:])
        said(chat, [SystemMessage(role)], f"{text}\n\n{question(9)}")


@way("sub-agents and forks", "the history as messages, under a system prompt of its own")
def under_another(chat: ChatMLXCached) -> None:
    history = talked(chat)
    for role in ROLES:
        said(chat, [SystemMessage(role), *history[1:]], question(9))


@way("sub-agents and forks", "the conversation itself, continued by each", best=True)
def forked(chat: ChatMLXCached) -> None:
    history = talked(chat)
    for role in ROLES:
        said(chat, history, f"{role} {question(9)}")


@way("a history that is cut", "to the newest messages, each turn")
def trimmed(chat: ChatMLXCached) -> None:
    history: list[BaseMessage] = [SystemMessage(SYSTEM)]
    for n in range(2 * TURNS):
        asked = [*history, HumanMessage(f"{question(n)} {PAGE.format(n=n)}")]
        asked = trim_messages(asked, max_tokens=8, token_counter=len, include_system=True)
        history = [*asked, chat.invoke(asked)]


@way("a history that is cut", "rarely, and then by half", best=True)
def halved(chat: ChatMLXCached) -> None:
    history: list[BaseMessage] = [SystemMessage(SYSTEM)]
    for n in range(2 * TURNS):
        asked = [*history, HumanMessage(f"{question(n)} {PAGE.format(n=n)}")]
        if len(asked) > 8:
            asked = trim_messages(asked, max_tokens=4, token_counter=len, include_system=True)
        history = [*asked, chat.invoke(asked)]


def summed_up(chat: ChatMLXCached, middleware: Any) -> None:
    agent = create_agent(chat, TOOLS, system_prompt=SYSTEM, middleware=[middleware])
    messages: list[Any] = []
    for n in range(TURNS):
        asked = HumanMessage(f"{PAGE.format(n=n)}\n\n{question(n)}")
        messages = agent.invoke({"messages": [*messages, asked]})["messages"]


LIMITS: dict[str, Any] = {"trigger": ("messages", 9), "keep": ("messages", 3)}


@way("a conversation summed up", "`SummarizationMiddleware`")
def summarized(chat: ChatMLXCached) -> None:
    prompt = f"{{messages}}\n\n{SUM_UP}"
    summed_up(
        chat,
        SummarizationMiddleware(
            chat, summary_prompt=prompt, trim_tokens_to_summarize=None, **LIMITS
        ),
    )


@way("a conversation summed up", "`PrefixKeepingSummarization`", best=True)
def summarized_in_place(chat: ChatMLXCached) -> None:
    summed_up(chat, PrefixKeepingSummarization(summary_prompt=SUM_UP, **LIMITS))
