"""Other ways to say the same, for templates that lack a feature.

Tools in the system prompt, a system prompt in the first user message, calls as text. `prompt.py`
finds which of them a conversation needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

from .call_forms import plain_turns, tool_prompt, with_instructions

Dicts = list[dict[str, Any]]

SYSTEM_ROLES = ("system", "developer")


class Mend(Enum):
    """Another way to say the same; it is stored by its value."""

    PARTS = "parts"
    SYSTEM_IN_USER = "system-in-user"
    TOOLS_IN_SYSTEM = "tools-in-system"
    TOOLS_IN_USER = "tools-in-user"
    CALLS_ALONE = "calls-alone"
    TEXT_BESIDE = "text-beside"
    ANSWERS_APART = "answers-apart"
    CALLS_AS_TEXT = "calls-as-text"
    LATER_IN_USER = "later-in-user"
    ONE_OF_A_ROLE = "one-of-a-role"
    NOTHING_EMPTY = "nothing-empty"
    ASKED_AGAIN = "asked-again"


# The template's own prompt for tools is replaced.
GENERIC_TOOLS = frozenset([Mend.TOOLS_IN_SYSTEM, Mend.TOOLS_IN_USER])
# The user's notice of a mend; the others move nothing.
_TOLD = {
    Mend.SYSTEM_IN_USER: "has no place for a system prompt: it is put into the first user message",
    Mend.TOOLS_IN_SYSTEM: "has no place for tools: they are put into the system prompt",
    Mend.TOOLS_IN_USER: "has no place for tools: they are put into the first user message",
    Mend.TEXT_BESIDE: "drops text beside calls: it is put into a message of its own",
    Mend.CALLS_AS_TEXT: "has no place for these calls and results: they are written as text",
    Mend.LATER_IN_USER: (
        "has no place for system messages in mid-conversation: they are put into user messages"
    ),
    **dict.fromkeys(
        (Mend.ANSWERS_APART, Mend.ASKED_AGAIN),
        "has no place for an answer behind an answer: an empty user message is put between",
    ),
}


def told(mends: frozenset[Mend]) -> tuple[str, ...]:
    """One line for the user about each part that was moved."""
    lines = dict.fromkeys(said for mend, said in _TOLD.items() if mend in mends)
    return tuple(f"this model's chat template {said}" for said in lines)


def mended(
    messages: Dicts, arguments: Mapping[str, Any], mends: frozenset[Mend], example: str = ""
) -> tuple[Dicts, Mapping[str, Any]]:
    """The template's input: messages and arguments with all of `mends`.

    `example` is a call in the form used (`PromptForm`).
    """
    if not mends:
        return messages, arguments
    made = messages
    for mend, change in _BEFORE_TOOLS.items():
        made = change(made) if mend in mends else made
    tools = arguments.get("tools")
    if tools and mends & GENERIC_TOOLS:
        arguments = {key: value for key, value in arguments.items() if key != "tools"}
        role = "system" if Mend.TOOLS_IN_SYSTEM in mends else "user"
        made = _with_tools(made, tool_prompt(tools, example), role)
    for mend, change in _BEHIND_TOOLS.items():
        made = change(made) if mend in mends else made
    return made, arguments


def asked_again(messages: Dicts) -> Dicts:
    """The messages, with an empty question behind an answer that is last (`Mend.ASKED_AGAIN`)."""
    answered = bool(messages) and messages[-1]["role"] == "assistant"
    return [*messages, {"role": "user", "content": ""}] if answered else messages


def _with_tools(messages: Dicts, text: str, role: str) -> Dicts:
    if role == "system":
        return with_instructions(messages, text, "system")
    return with_instructions(_system_in_user(messages), text, "user")


def _in_parts(messages: Dicts) -> Dicts:
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else message
        for message in messages
    ]


def _system_in_user(messages: Dicts) -> Dicts:
    """The leading system text, moved before the first user message's own words."""
    roles = [message["role"] for message in messages]
    count = next((at for at, role in enumerate(roles) if role not in SYSTEM_ROLES), len(roles))
    said = _joined(message.get("content") for message in messages[:count])
    rest = messages[count:]
    if not said:
        return rest or messages
    if rest and rest[0]["role"] == "user":
        first = {**rest[0], "content": _joined([said, rest[0]["content"]])}
        return [first, *rest[1:]]
    return [{"role": "user", "content": said}, *rest]


def _later_in_user(messages: Dicts) -> Dicts:
    """Later system messages, moved into the user message that follows, or made one."""
    made: Dicts = []
    waiting: list[str] = []
    for message in messages:
        leading = all(one["role"] in SYSTEM_ROLES for one in made)
        if message["role"] in SYSTEM_ROLES and not (leading and not waiting):
            waiting.append(message["content"])
            continue
        if waiting and message["role"] == "user":
            message = {**message, "content": _joined([*waiting, message["content"]])}
        elif waiting:
            made.append({"role": "user", "content": _joined(waiting)})
        waiting = []
        made.append(message)
    return [*made, {"role": "user", "content": _joined(waiting)}] if waiting else made


def _calls_alone(messages: Dicts) -> Dicts:
    """Calls with no text beside them, without any content, which some templates look for."""
    return [
        {**message, "content": None}
        if message.get("tool_calls") and not (message.get("content") or "").strip()
        else message
        for message in messages
    ]


def _text_beside(messages: Dicts) -> Dicts:
    """Text beside calls as an answer of its own, before them."""
    made: Dicts = []
    for message in messages:
        if message.get("tool_calls") and (message.get("content") or "").strip():
            bare = {key: value for key, value in message.items() if key != "tool_calls"}
            made += [bare, {**message, "content": ""}]
        else:
            made.append(message)
    return made


def _answers_apart(messages: Dicts) -> Dicts:
    """An empty question before each answer in words that has none since the last one.

    Templates that want them to take turns do not count calls and results.
    """
    made: Dicts = []
    answered = False
    for message in messages:
        in_words = message["role"] == "assistant" and not message.get("tool_calls")
        if answered and in_words:
            made.append({"role": "user", "content": ""})
        answered = in_words or (answered and message["role"] != "user")
        made.append(message)
    return made


def _one_of_a_role(messages: Dicts) -> Dicts:
    """Neighbours of one role as one message; answers with calls and results stay."""
    made: Dicts = []
    for message in messages:
        alike = made and made[-1]["role"] == message["role"] != "tool"
        if alike and not made[-1].get("tool_calls"):
            before = made.pop()
            joined = _joined([before.get("content"), message.get("content")])
            message = {**before, **message, "content": joined}
        made.append(message)
    return made


def _nothing_empty(messages: Dicts) -> Dicts:
    """The messages without empty ones, except results and an only message."""
    kept = [
        message
        for message in messages
        if message["role"] == "tool"
        or message.get("tool_calls")
        or (message.get("content") or "").strip()
    ]
    return kept or messages


def _joined(texts: Any) -> str:
    return "\n\n".join(text for text in texts if text)


_BEFORE_TOOLS: dict[Mend, Callable[[Dicts], Dicts]] = {
    Mend.NOTHING_EMPTY: _nothing_empty,
    Mend.CALLS_AS_TEXT: plain_turns,
    Mend.TEXT_BESIDE: _text_beside,
    Mend.LATER_IN_USER: _later_in_user,
    Mend.ANSWERS_APART: _answers_apart,
}
_BEHIND_TOOLS: dict[Mend, Callable[[Dicts], Dicts]] = {
    Mend.SYSTEM_IN_USER: _system_in_user,
    Mend.ONE_OF_A_ROLE: _one_of_a_role,
    Mend.CALLS_ALONE: _calls_alone,
    Mend.PARTS: _in_parts,
}
