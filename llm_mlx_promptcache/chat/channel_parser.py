"""Answers that are several messages with headers (harmony): told apart by their channels."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from .answer_parser import AnswerParser
from .answer_parts import (
    Answer,
    CallArguments,
    CallName,
    CutShort,
    Part,
    ReasoningDelta,
    TextDelta,
    cut_short,
    half_call,
)
from .arguments import parameters_of, unfit
from .call_forms import Thinking
from .call_objects import new_call_id, read_object
from .forms import Channels, Form
from .generated import InvalidCall, ToolCall
from .grammar import Grammar
from .part_parser import PartParser
from .scanning import Marks

_RECIPIENT = re.compile(r"to=([^\s<]{1,256})")
_ESCAPED = re.compile(r"\\.", re.DOTALL)
_WORD = re.compile(r"\s*(\w{1,64})")


class _Section(Enum):
    HEADER = "header"
    TEXT = "text"
    REASONING = "reasoning"
    CALL = "call"


def parser_of(
    form: Form | None,
    tools: Sequence[Mapping[str, Any]],
    *,
    grammar: Grammar | None = None,
    thinking: Thinking | None = None,
    most: int | None = None,
    continued: bool = False,
) -> AnswerParser | ChannelParser:
    """The parser for an answer of at most `most` calls in its model's form.

    `continued`: the prompt ends inside the answer's text.
    """
    if form is not None and form.channels is not None:
        return ChannelParser(form.channels, tools, grammar, most, continued=continued)
    return AnswerParser(form, tools, grammar=grammar, thinking=thinking, most=most)


class ChannelParser(PartParser):
    """Takes an answer's text as it comes, as `AnswerParser` does; the prompt opened a header.

    `continued`: the prompt ends inside a message's text.
    """

    def __init__(
        self,
        channels: Channels,
        tools: Sequence[Mapping[str, Any]] = (),
        grammar: Grammar | None = None,
        most: int | None = None,
        *,
        continued: bool = False,
    ) -> None:
        super().__init__(most)
        self._channels = channels
        self._kind = None if grammar is None else grammar.kind
        self._parameters = parameters_of(tools)
        self._section = _Section.TEXT if continued else _Section.HEADER
        self._name = self._body = ""
        self._inside: tuple[int, int] | None = None  # the first mark in a string of the call's
        self._said: dict[_Section, list[str]] = {_Section.TEXT: [], _Section.REASONING: []}
        self._apart = False

    @property
    def reasons(self) -> bool:
        """True if the next text is reasoning, as far as is known."""
        return self._section is _Section.REASONING

    def finish(self, *, whole: bool) -> tuple[list[Part], Answer]:
        """The last parts, and the answer; `whole`: the model ended it."""
        parts: list[Part] = []
        cut = half = None
        while self._section is _Section.CALL and whole:
            self._body += self._waiting
            self._waiting = self._close_call(parts)
            parts += self.feed("")
        if self._section is _Section.CALL or (not whole and self._names_recipient()):
            cut = CutShort("a call of a tool")
            half = half_call(*self._half(), new_call_id())
        elif self._section is not _Section.HEADER:
            self._say(parts, self._waiting)
        if not whole:
            cut = cut or cut_short(self._kind, called=bool(self._calls))
        texts, thoughts = ("".join(self._said[s]) for s in (_Section.TEXT, _Section.REASONING))
        calls, invalid = tuple(self._calls), tuple(self._invalid)
        return parts, Answer(texts, thoughts, calls, cut, invalid, half=half)

    def _half(self) -> tuple[str, str]:
        """Name and text of the call that the answer ended in."""
        if self._section is _Section.CALL:
            return self._name, self._body + self._waiting
        recipient = _RECIPIENT.search(self._waiting)
        return (self._recipient(recipient[1]) if recipient else ""), ""

    def _recipient(self, named: str) -> str:
        return named.removeprefix(self._channels.recipient.removeprefix("to="))

    def _step(self, parts: list[Part]) -> bool:
        """Parse as much of the waiting text as possible; False when more text is needed first."""
        if self._section is _Section.HEADER:
            return self._step_header()
        channels = self._channels
        before, mark, after = Marks([*channels.ends, channels.start]).split(self._waiting)
        if self._section is _Section.CALL:
            self._body += before
        else:
            self._say(parts, before)
        self._waiting = after
        if mark is None:
            return False
        if self._section is _Section.CALL:
            if _in_string(self._body):
                # Spelled out, not a token; or the call is broken, which its end will show.
                start = len(self._body)
                self._inside = self._inside or (start, start + len(mark))
                self._body += mark
                return True
            behind = self._close_call(parts)
            self._waiting = f"{behind}{mark}{after}" if behind else after
        self._section, self._apart = _Section.HEADER, True
        return True

    def _step_header(self) -> bool:
        channels = self._channels
        header, found, rest = self._waiting.partition(channels.message)
        if not found:
            if self._may_be_header():
                return False
            # Words without a header are the answer.
            self._section = _Section.TEXT
            return True
        self._waiting = rest
        recipient = _RECIPIENT.search(header)
        word = _WORD.match(header.partition(channels.channel)[2])
        if recipient is not None:
            self._section, self._body = _Section.CALL, ""
            self._name = self._recipient(recipient[1])
        elif word is not None and word[1] in channels.reasoning:
            self._section = _Section.REASONING
        else:
            self._section = _Section.TEXT
        return True

    def _names_recipient(self) -> bool:
        """True if a header is open that makes its message a call."""
        return self._section is _Section.HEADER and bool(_RECIPIENT.search(self._waiting))

    def _may_be_header(self) -> bool:
        channels, lead = self._channels, self._waiting.lstrip()
        starts = (channels.channel, channels.start, channels.message, "to=")
        return not lead or any(lead.startswith(s) or s.startswith(lead) for s in starts)

    def _say(self, parts: list[Part], text: str) -> None:
        said = self._said[self._section]
        if not text:
            return
        if self._apart and said:
            text = f"\n\n{text}"
        self._apart = False
        said.append(text)
        thinks = self._section is _Section.REASONING
        parts.append(ReasoningDelta(text) if thinks else TextDelta(text))

    def _close_call(self, parts: list[Part]) -> str:
        """End the call; returns the text behind it if a mark inside a string was its end."""
        behind = ""
        if self._inside is not None and read_object(self._body, {}) is None:
            start, end = self._inside
            self._body, behind = self._body[:start], self._body[end:]
        self._inside, self._section, self._apart = None, _Section.HEADER, True
        self._end_call(parts)
        return behind

    def _end_call(self, parts: list[Part]) -> None:
        name, id = self._name, new_call_id()
        schema = self._parameters.get(name)
        arguments = read_object(self._body, schema or {})
        if schema is None or arguments is None:
            error = "no tool has this name" if schema is None else "its arguments can't be read"
            self._invalid.append(InvalidCall(name, self._body, error, id, arguments))
            parts.append(self._invalid[-1])
            return
        if reason := unfit(arguments, schema):
            self._invalid.append(InvalidCall(name, self._body, reason, id))
            parts.append(self._invalid[-1])
            return
        self._calls.append(ToolCall(name, arguments, id))
        parts.append(CallName(id, name))
        parts.append(CallArguments(id, json.dumps(arguments, ensure_ascii=False)))


def _in_string(text: str) -> bool:
    """True if JSON that is still coming ends inside a string."""
    return _ESCAPED.sub("", text).count('"') % 2 == 1
