"""The parts of an answer as they come, and the answer as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from .generated import InvalidCall, ToolCall


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


# A call that can't be made is emitted in its place, as a whole.
Part = TextDelta | ReasoningDelta | CallName | CallArguments | InvalidCall


class CutShort(ValueError):
    """The answer ended inside a call or a document, which only count when complete."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"the answer ended inside {what} (max_tokens or a stop string); raise max_tokens"
        )
        self.what = what


@dataclass(frozen=True)
class Answer:
    """An answer that has ended; `calls` holds complete ones only.

    `cut` is set if the answer ended inside a call or a document; `invalid` holds calls of unknown
    tools, and those whose arguments can't be read, with their text. `streamed` is the text as it
    was emitted piece by piece, if that differs: reasoning that nothing opened is known as such only
    when it is closed. `half` is the call that the answer ended in, with its text so far and the id
    that was emitted for it, if one was.
    """

    text: str = field(repr=False)
    reasoning: str = field(repr=False)
    calls: tuple[ToolCall, ...] = ()
    cut: CutShort | None = None
    invalid: tuple[InvalidCall, ...] = ()
    streamed: str = field(default="", repr=False)
    half: InvalidCall | None = None

    def whole(self) -> Answer:
        """The answer itself; raises `cut` if it is set."""
        if self.cut is not None:
            raise self.cut
        return self


def half_call(name: str, text: str, id: str) -> InvalidCall:
    """The incomplete call that an answer ended in."""
    return InvalidCall(name, text, str(CutShort("this call")), id)


def cut_short(kind: str | None, *, called: bool) -> CutShort | None:
    """The error of an answer that ended early; `kind` of its grammar, None without one.

    Complete calls count, whatever was to follow them.
    """
    if kind is None or (called and kind in ("tools", "tools_or_schema")):
        return None
    return CutShort(_WHOLE[str(kind)])


_WHOLE = {
    "schema": "a JSON document",
    "tools_or_schema": "a call or JSON document",
    "regex": "what its pattern asks for",
    "tools": "a call of a tool",
}
