"""A chat template's input: messages as dicts, in the form that this template takes.

Templates agree on the dicts that `Message.to_template` makes, except for a few details on which
they refuse each other's form. The plainest form that renders is used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import combinations, pairwise
from typing import Any

from .messages import Message, results
from .template_work import TooMuchWork

_MISTRAL_ID = re.compile(r"[a-zA-Z0-9]{9}")
# The names under which templates look for an answer's reasoning.
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Turn:
    """One dict for the template, and the indices of the messages it was made of."""

    message: dict[str, Any]
    sources: tuple[int, ...]


def turns_of(
    messages: Sequence[Message], apply: Callable[[list[dict[str, Any]]], str]
) -> tuple[list[Turn], str]:
    """The turns in the first form that `apply` renders, and their text; raises its errors."""
    plain = _plain(messages)
    switches = [switch for switch, applies in _SWITCHES.items() if applies(plain)]
    refusal: Exception | None = None
    for chosen in _subsets(switches):
        turns = _with(plain, chosen)
        try:
            text = apply([turn.message for turn in turns])
        except TooMuchWork:
            raise
        except Exception as error:
            refusal = refusal or error
            continue
        if refusal is None:
            return _improved(plain, turns, text, apply)
        return turns, text
    raise refusal or RuntimeError("no form of the messages was tried")


def _improved(
    plain: list[Turn], turns: list[Turn], text: str, apply: Callable[[list[dict[str, Any]]], str]
) -> tuple[list[Turn], str]:
    """A better form than one that renders but hides instructions, or shows Python for JSON."""
    for switch, better in ((_developer_as_system, _shows_more), (_arguments_as_text, _less_python)):
        if not _SWITCHES[switch](plain) or not better(turns, text, None):
            continue
        other = [Turn(switch(turn.message), turn.sources) for turn in turns]
        try:
            found = apply([turn.message for turn in other])
        except TooMuchWork:
            raise
        except Exception:  # noqa: S112 - what renders already stands
            continue
        if better(turns, text, found):
            turns, text = other, found
    return turns, text


def _shows_more(turns: list[Turn], text: str, other: str | None) -> bool:
    """True if `text` lacks developers' instructions that `other` (None: perhaps) has."""
    said = [t.message["content"].strip() for t in turns if t.message["role"] == "developer"]
    return any(one not in text and (other is None or one in other) for one in said)


def _less_python(turns: list[Turn], text: str, other: str | None) -> bool:
    """True if `text` shows arguments as Python's dicts, and `other` (None: perhaps) does not."""
    keys = (next(iter(call["function"]["arguments"]), None) for call in _calls(turns))
    shown = {f"{{{key!r}:" for key in keys if key is not None}
    return any(text.count(one) > (other.count(one) if other else 0) for one in shown)


def _plain(messages: Sequence[Message]) -> list[Turn]:
    """Every message as its dict, calls and results with names and ids that fit together."""
    called = dict(results(messages))
    number = 0
    ids: dict[int, str] = {}
    turns = []
    for index, message in enumerate(messages):
        made = message.to_template()
        for call, shown in zip(message.tool_calls, made.get("tool_calls", ()), strict=False):
            number += 1
            # Nine letters and digits, as Mistral's templates require.
            ids[id(call)] = shown["id"] = call.id or f"call{number:05d}"
        answered = called.get(index)
        if answered is not None:
            made = {"name": answered.name, "tool_call_id": ids[id(answered)], **made}
        if "reasoning_content" in made:
            made |= dict.fromkeys(REASONING_KEYS, message.reasoning)
        turns.append(Turn(made, (index,)))
    return turns


def _with(turns: list[Turn], switches: Sequence[Callable[..., Any]]) -> list[Turn]:
    for switch in switches:
        if switch is _merged:
            turns = _merged(turns)
        else:
            turns = [Turn(switch(turn.message), turn.sources) for turn in turns]
    return turns


def _merged(turns: list[Turn]) -> list[Turn]:
    """Neighbours of one role as one message."""
    made: list[Turn] = []
    for turn in turns:
        if made and _mergeable(made[-1].message, turn.message):
            before = made.pop()
            texts = [t.message["content"] for t in (before, turn)]
            content = "\n\n".join(text for text in texts if text)
            merged = {**before.message, **turn.message, "content": content}
            made.append(Turn(merged, before.sources + turn.sources))
        else:
            made.append(turn)
    return made


def _mergeable(one: dict[str, Any], other: dict[str, Any]) -> bool:
    # Each result is its own, and a text behind calls would come in front of them.
    return bool(
        one["role"] == other["role"] != "tool" and not one.get("tool_calls")
    ) and not other.get(REASONING_KEYS[0])


def _has_neighbours(turns: list[Turn]) -> bool:
    return any(_mergeable(one.message, other.message) for one, other in pairwise(turns))


def _developer_as_system(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "role": "system"} if message["role"] == "developer" else message


def _arguments_as_text(message: dict[str, Any]) -> dict[str, Any]:
    """The message with arguments in OpenAI's form, text, which some templates copy as it stands."""
    if not message.get("tool_calls"):
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": _text(call)}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _text(call: dict[str, Any]) -> str:
    arguments = call["function"]["arguments"]
    if isinstance(arguments, str):
        return arguments
    return json.dumps(arguments, ensure_ascii=False)


def _short_ids(message: dict[str, Any]) -> dict[str, Any]:
    made = dict(message)
    if "tool_call_id" in made:
        made["tool_call_id"] = _short(made["tool_call_id"])
    if made.get("tool_calls"):
        made["tool_calls"] = [{**call, "id": _short(call["id"])} for call in made["tool_calls"]]
    return made


def _short(name: str) -> str:
    if _MISTRAL_ID.fullmatch(name):
        return name
    return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()[:9]


def _one_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in message.items() if k not in REASONING_KEYS[1:]}


def _calls(turns: Sequence[Turn]) -> Iterator[dict[str, Any]]:
    for turn in turns:
        yield from turn.message.get("tool_calls", ())


def _subsets(switches: list[Callable[..., Any]]) -> Iterator[tuple[Callable[..., Any], ...]]:
    """All subsets: none of them first, then as few as possible."""
    for size in range(len(switches) + 1):
        yield from combinations(switches, size)


_SWITCHES: dict[Callable[..., Any], Callable[[list[Turn]], bool]] = {
    _short_ids: lambda turns: any(not _MISTRAL_ID.fullmatch(c["id"]) for c in _calls(turns)),
    _arguments_as_text: lambda turns: any(True for _ in _calls(turns)),
    _one_reasoning: lambda turns: any(REASONING_KEYS[1] in turn.message for turn in turns),
    _developer_as_system: lambda turns: any(t.message["role"] == "developer" for t in turns),
    _merged: _has_neighbours,
}
