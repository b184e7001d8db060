"""Generated text -> text, reasoning and calls of tools, piece by piece and at the end.

What was cut is never a call: `Answer.cut` tells, as an error that the front end can raise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from .call_forms import (
    GENERIC,
    CallForm,
    CallTokenizer,
    Thinking,
    form_of,
    new_call_id,
    plain_turn,
    read_calls,
    thinking_of,
    tool_prompt,
)
from .generated import ToolCall
from .grammar import Grammar
from .scanning import JsonValue, Marks, opens_call, outside_strings

__all__ = [
    "GENERIC",
    "Answer",
    "CallArguments",
    "CallForm",
    "CallName",
    "CallTokenizer",
    "Collector",
    "CutShort",
    "Part",
    "ReasoningDelta",
    "TextDelta",
    "Thinking",
    "form_of",
    "plain_turn",
    "thinking_of",
    "tool_prompt",
]

_DOCUMENTS = {"schema": "a JSON document", "tools_or_schema": "a call or JSON document"}


class TextDelta(NamedTuple):
    """The next piece of the answer's text."""

    text: str

    def __repr__(self) -> str:
        return f"TextDelta({len(self.text)} characters)"


class ReasoningDelta(NamedTuple):
    """The next piece of the reasoning."""

    text: str

    def __repr__(self) -> str:
        return f"ReasoningDelta({len(self.text)} characters)"


class CallName(NamedTuple):
    """A call begins: its id, and the tool's name."""

    id: str
    name: str


class CallArguments(NamedTuple):
    """The next piece of a call's arguments, as JSON text; put together, one object."""

    id: str
    text: str

    def __repr__(self) -> str:
        return f"CallArguments({self.id!r}, {len(self.text)} characters)"


Part = TextDelta | ReasoningDelta | CallName | CallArguments


class CutShort(ValueError):
    """The answer ended inside what only counts as a whole: a call, or a document."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"the answer ended inside {what} (max_tokens or a stop string); raise max_tokens"
        )
        self.what = what


@dataclass(frozen=True)
class Answer:
    """What an answer is, once it has ended; `calls` holds whole ones only.

    `cut` is set where the answer ended inside a call or a document; `unreadable` counts calls
    that were no calls, and stand in the text as they were generated.
    """

    text: str = field(repr=False)
    reasoning: str = field(repr=False)
    calls: tuple[ToolCall, ...] = ()
    cut: CutShort | None = None
    unreadable: int = 0

    def whole(self) -> Answer:
        """The answer itself; raises `cut` where there is one."""
        if self.cut is not None:
            raise self.cut
        return self


class Collector:
    """Takes an answer's text as it comes, hands out its parts, and has the whole at the end.

    Where a grammar makes calls sure to be well-formed, their arguments are handed out as they
    come; else a call is held until it is whole, since it may turn out to be text.
    """

    def __init__(
        self,
        form: CallForm | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        grammar: Grammar | None = None,
        thinking: Thinking | None = None,
    ) -> None:
        self._grammar = grammar
        self._sure = grammar is not None and grammar.has_calls
        if not tools or (grammar is not None and not grammar.has_calls):
            form = None
        self._form = form.for_grammar() if form and self._sure else form
        self._tools, self._thinking = tools, thinking
        self._state: Literal["text", "reasoning", "call"] = "text"
        if thinking is not None and thinking.opened:
            self._state = "reasoning"
        self._waiting = ""  # may be the beginning of a mark, or of a call without one
        self._spaces = ""  # shown only when something of the same kind follows
        self._after_mark = self._state == "reasoning"
        self._body = ""
        self._open: _OpenCall | None = None
        self._texts: list[str] = []
        self._reasonings: list[str] = []
        self._calls: list[ToolCall] = []
        self._unreadable = 0

    @property
    def reasons(self) -> bool:
        """Whether what comes next is reasoning, as far as is known."""
        return self._state == "reasoning"

    def feed(self, text: str) -> list[Part]:
        """The parts that `text` completes."""
        parts: list[Part] = []
        self._waiting += text
        while self._waiting and self._step(parts, last=False):
            pass
        return parts

    def finish(self, whole: bool) -> tuple[list[Part], Answer]:
        """The last parts, and the answer.

        `whole`: the model ended it, or its grammar could end there; False for a limit or a stop
        string.
        """
        parts: list[Part] = []
        if not whole and self._sure and self._state == "text":
            # The beginning of a mark is not what the answer says.
            self._waiting = self._waiting[: len(self._waiting) - self._marked()]
        while self._waiting and self._step(parts, last=True):
            pass
        cut = None if whole else self._cut()
        if self._state == "call":
            if whole:
                self._end_call(parts, closed=False)
            else:
                cut = CutShort("a call of a tool")
        if self._sure and self._unreadable:
            # Its name has been handed out already, so it can't become text.
            cut = CutShort("a call that is nested too deep to be read")
        if self._spaces and not self._calls and self._state == "text":
            self._show(parts, "")
        answer = Answer(
            "".join(self._texts),
            "".join(self._reasonings),
            tuple(self._calls),
            cut,
            self._unreadable,
        )
        return parts, answer

    def _cut(self) -> CutShort | None:
        kind = None if self._grammar is None else self._grammar.kind
        if kind in (None, "tools_or_text"):
            return None
        if kind == "tools":
            # Whole calls count; one that is open is found by its state.
            return None if self._calls else CutShort("a call of a tool")
        if kind == "tools_or_schema" and self._calls:
            return None
        return CutShort(_DOCUMENTS.get(kind or "", "what its pattern asks for"))

    def _step(self, parts: list[Part], last: bool) -> bool:
        """Take what can be taken of what waits; False when more text is needed first."""
        if self._state == "call":
            return self._step_call(parts, last)
        if self._holds_bare_call() and not last:
            return False
        if last and self._take_bare_call(parts):
            return False
        before, mark, after = Marks(self._marks()).split(self._waiting)
        if mark is None and last:
            before, after = self._waiting, ""
        self._say(parts, before)
        self._waiting = after
        if mark is not None:
            self._enter(mark)
        return mark is not None

    def _marked(self) -> int:
        """How many of the last characters that wait may be the beginning of a call."""
        return Marks([self._form.start] if self._form else []).overlap(self._waiting)

    def _marks(self) -> list[str]:
        """The marks that mean something here."""
        form, thinking = self._form, self._thinking
        if self._state == "reasoning":
            ends = [thinking.end] if thinking else []
            # Some models call from inside their thinking, without ending it.
            return ends + ([form.start] if form and self._grammar is None else [])
        # Reasoning comes first: behind shown text its mark is text about the mark.
        marks = [thinking.start] if thinking and self._opens(thinking.start) else []
        if form is None:
            return marks
        # So does a call that stands in place of a document, which may quote the mark.
        either = self._grammar is not None and self._grammar.kind == "tools_or_schema"
        return [*marks, form.start] if not either or self._opens(form.start) else marks

    def _opens(self, mark: str) -> bool:
        """Whether what waits is, or may become, a `mark` with no text before it."""
        lead = self._waiting.lstrip()
        return not self._texts and (lead.startswith(mark) or mark.startswith(lead))

    def _enter(self, mark: str) -> None:
        before, self._after_mark = self._state, True
        if self._form is not None and mark == self._form.start:
            self._state, self._body, self._open = "call", "", None
            if before == "text":
                return  # the spaces wait: they are shown where this turns out to be text
        elif self._state == "reasoning":
            self._state = "text"
        else:
            self._state = "reasoning"
        self._spaces = ""

    def _say(self, parts: list[Part], text: str) -> None:
        """Show text or reasoning; white space beside a mark belongs to the mark."""
        if self._after_mark:
            text = text.lstrip()
        if not text:
            return
        self._after_mark = False
        text = self._spaces + text
        if self._form is None and self._texts and self._state == "text":
            self._show(parts, text)
            return
        shown = text.rstrip()
        self._spaces = text[len(shown) :]
        if shown:
            spaces, self._spaces = self._spaces, ""
            self._show(parts, shown)
            self._spaces = spaces

    def _show(self, parts: list[Part], text: str) -> None:
        text, self._spaces = text or self._spaces, ""
        if self._state == "reasoning":
            self._reasonings.append(text)
            parts.append(ReasoningDelta(text))
        else:
            self._texts.append(text)
            parts.append(TextDelta(text))

    def _step_call(self, parts: list[Part], last: bool) -> bool:
        form = self._form or GENERIC
        # With no mark for its end, a call ends where another begins.
        mark = form.end or form.start
        whole = self._body + self._waiting
        # Some models write JSON or tags, as they like; in tags a quote means nothing.
        in_json = form.style in ("header", "kimi") or whole.lstrip()[:1] in ("{", "[")
        find = outside_strings if in_json else str.find
        at = find(whole, mark, max(0, len(self._body) - len(mark) + 1))
        if at < 0:
            kept = 0 if last else Marks([mark]).overlap(whole)
            self._body, self._waiting = whole[: len(whole) - kept], whole[len(whole) - kept :]
            self._stream(parts)
            return False
        self._body, self._waiting = whole[:at], whole[at + len(mark) :]
        self._stream(parts)
        self._end_call(parts, closed=bool(form.end))
        if not form.end:
            self._enter(form.start)
        return True

    def _stream(self, parts: list[Part]) -> None:
        """Hand out a call's name and arguments as far as they are known."""
        if not self._sure or self._form is None:
            return
        if self._open is None:
            found = self._form.header(self._body)
            if found is None:
                return
            self._open = _OpenCall(new_call_id(), found[0], found[1])
            parts.append(CallName(self._open.id, self._open.name))
        text = self._open.value.feed(self._body[self._open.read :])
        self._open.read = len(self._body)
        self._open.arguments += text
        if text:
            parts.append(CallArguments(self._open.id, text))

    def _end_call(self, parts: list[Part], closed: bool) -> None:
        form, opened = self._form or GENERIC, self._open
        self._state, self._open, self._after_mark = "text", None, True
        try:
            if opened is not None:
                self._calls.append(opened.read_call())
                calls: tuple[ToolCall, ...] = ()
            else:
                calls = read_calls(form, self._body, self._tools)
        except ValueError:
            self._unreadable += 1
            self._after_mark = False
            if opened is None:
                text = form.start + self._body + (form.end if closed else "")
                self._show(parts, self._spaces + text)
            return
        self._spaces = ""
        self._tell(parts, calls)

    def _tell(self, parts: list[Part], calls: Sequence[ToolCall]) -> None:
        """Hand out calls that were held until they were whole."""
        for call in calls:
            parts.append(CallName(call.id, call.name))
            arguments = json.dumps(call.arguments, ensure_ascii=False)
            parts.append(CallArguments(call.id, arguments))
        self._calls.extend(calls)

    def _holds_bare_call(self) -> bool:
        """Whether what waits may be a call that a model wrote without its marks."""
        free = self._form is not None and self._grammar is None and self._form.style == "json"
        return free and not self._said() and opens_call(self._waiting)

    def _take_bare_call(self, parts: list[Part]) -> bool:
        if not self._holds_bare_call():
            return False
        names = {tool["function"]["name"] for tool in self._tools}
        try:
            calls = read_calls(GENERIC, self._waiting, self._tools)
        except ValueError:
            return False
        if not all(call.name in names for call in calls):
            return False
        self._tell(parts, calls)
        self._waiting = ""
        return True

    def _said(self) -> bool:
        return bool(self._texts or self._calls)


@dataclass
class _OpenCall:
    """A call that is being handed out; `read` is how far its body has been."""

    id: str
    name: str
    read: int
    arguments: str = ""
    value: JsonValue = field(default_factory=JsonValue)

    def read_call(self) -> ToolCall:
        """What was handed out, as one call; ValueError where it is nested too deep to read."""
        body = f'{{"name": {json.dumps(self.name)}, "arguments": {self.arguments}}}'
        [call] = read_calls(GENERIC, body, ())
        return ToolCall(call.name, call.arguments, self.id)
