"""Words of a conversation that a rendering lacks, found by marks in their place and by the words.

A second rendering has a mark in place of each text; marks must stand in order. Then the words
themselves are looked for, since a template may cut or change them. Templates trim, escape and drop
earlier reasoning: that is their choice.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .template_input import Turn
from .template_work import TooMuchWork

Tools = Sequence[Mapping[str, Any]]
_SYSTEM = ("system", "developer")
_WORD = re.compile(r"\w+")
# A text this long is not found by accident.
_CERTAIN = 16


class Lost(NamedTuple):
    """The part that a rendering lacks: its message (-1: the tools), the role, and its name."""

    at: int
    role: str
    what: str


class _Wording(NamedTuple):
    """One text of the conversation: its marks, and the words that must be there.

    Parts stand in their `order`; those of order 0 may stand anywhere.
    """

    where: Lost
    order: int
    marks: tuple[str, ...]
    words: tuple[str, ...]


def lost_words(
    turns: Sequence[Turn], text: str, tools: Tools, shown: Callable[..., str]
) -> Lost | None:
    """The first part that `text` lacks, or shows in another order; None if it has all.

    `shown` renders other messages and tools in the same way.
    """
    marks = _MarkSource(_head(turns, text))
    parts: list[_Wording] = []
    messages = []
    leading = True
    for order, turn in enumerate(turns, 1):
        leading = leading and turn.message["role"] in _SYSTEM
        # Leading system text stands where the template has a place for it.
        message, of_turn = _marked(turn, 0 if leading else order, marks)
        messages.append(message)
        parts += of_turn
    marked_tools, of_tools = _marked_tools(tools, marks)
    parts += of_tools
    try:
        other = shown(messages, marked_tools)
    except TooMuchWork:
        raise
    except Exception:
        other = None
    return next(_missing(parts, text, other), None)


def _missing(parts: Sequence[_Wording], text: str, other: str | None) -> Iterator[Lost]:
    """All parts that are lost. Without another rendering, the words alone must be there."""
    said = set(_out_of_order([(part, part.words) for part in parts], text))
    marked = said if other is None else set(_out_of_order([(p, p.marks) for p in parts], other))
    for number, part in enumerate(parts):
        if number in marked:
            # Some templates read the text, and show no mark in its place.
            certain = any(len(word) >= _CERTAIN for word in part.words)
            if other is None:
                shown = _all(part.words, text)
            else:
                read = not any(mark in other for mark in part.marks)
                shown = certain and read and number not in said
            if not shown:
                yield part.where
        # The template decides how to show an answer: old reasoning is dropped.
        elif part.where.role != "assistant" and not _all(part.words, text):
            yield part.where


def _out_of_order(parts: Sequence[tuple[_Wording, tuple[str, ...]]], text: str) -> Iterator[int]:
    """The numbers of the parts that don't stand behind all parts before them."""
    end, next_end, order = 0, 0, 0
    for number, (part, needles) in enumerate(parts):
        if part.order and part.order != order:
            end, order = next_end, part.order
        start = end if part.order else 0
        places = [text.find(needle, start) for needle in needles]
        if any(at < 0 for at in places):
            yield number
        elif part.order:
            next_end = max([next_end, *places])


def _all(words: Sequence[str], text: str) -> bool:
    return all(_shows(text, said) for said in words)


def _shows(text: str, said: str) -> bool:
    """True if `text` has these words: as they are, escaped, or one by one in their order."""
    said = said.strip()
    if any(escaped(said) in text for escaped in _ESCAPES):
        return True
    at = 0
    for word in _WORD.findall(said):
        place = text.find(word, at)
        if place < 0:
            return False
        at = place + len(word)
    return True


_ESCAPES: tuple[Callable[[str], str], ...] = (
    str,
    lambda said: json.dumps(said, ensure_ascii=False)[1:-1],
    lambda said: json.dumps(said)[1:-1],
    html.escape,
    lambda said: repr(said)[1:-1],
)


class _MarkSource:
    """Words that are nowhere in the conversation, and that no filter changes."""

    def __init__(self, head: str) -> None:
        self._head = head
        self._count = 0

    def new(self) -> str:
        self._count += 1
        return f"{self._head}{self._count}z"


def _head(turns: Sequence[Turn], text: str) -> str:
    number = 0
    said = [str(turn.message) for turn in turns]
    while any((head := f"q{number}word") in one for one in [text, *said]):
        number += 1
    return head


def _marked(turn: Turn, order: int, marks: _MarkSource) -> tuple[dict[str, Any], list[_Wording]]:
    """A turn with marks in place of its texts, and these texts."""
    message, parts = dict(turn.message), []
    index, role = turn.sources[0], message["role"]
    if (said := message["content"]).strip():
        message["content"] = marks.new()
        where = Lost(index, role, "the text")
        parts.append(_Wording(where, order, (message["content"],), (said.strip(),)))
    calls = []
    for number, call in enumerate(message.get("tool_calls", ())):
        where = Lost(index, role, f"call {number + 1}")
        changed, needles, words = _marked_call(call["function"], marks)
        calls.append({**call, "function": changed})
        parts.append(_Wording(where, order, needles, words))
    if calls:
        message["tool_calls"] = calls
    return message, parts


def _marked_call(
    function: Mapping[str, Any], marks: _MarkSource
) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]:
    """A call with other arguments, or another name if it has none; marks and words."""
    name, given = function["name"], function["arguments"]
    arguments = given if isinstance(given, Mapping) else _object(given)
    if not arguments:
        mark = marks.new()
        return {**function, "name": mark}, (mark,), (name,)
    marked = {key: marks.new() for key in arguments}
    changed: Any = marked if isinstance(given, Mapping) else json.dumps(marked)
    return {**function, "arguments": changed}, tuple(marked.values()), (name,)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _marked_tools(tools: Tools, marks: _MarkSource) -> tuple[list[dict[str, Any]], list[_Wording]]:
    """Tools with marks for name and description; each one's names of parameters are its words."""
    marked, parts = [], []
    for tool in tools:
        function = dict(tool["function"])
        name, needles = function["name"], [marks.new()]
        function["name"] = needles[0]
        if isinstance(said := function.get("description"), str) and said.strip():
            needles.append(marks.new())
            function["description"] = needles[1]
        schema = function.get("parameters")
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        words = (name, *(properties if isinstance(properties, Mapping) else ()))
        where = Lost(-1, "", f"the tool {name!r}")
        parts.append(_Wording(where, 0, tuple(needles), words))
        marked.append({**tool, "function": function})
    return marked, parts
