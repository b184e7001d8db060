r"""A model's form of calls and reasoning, as plain data.

Learned from the model's own template (`form_learning.py`) or written by hand for few families
(`hand_forms.py`). Reader, grammar and prompt work from this one structure:

    start  call  between  call  end

where a call is literals with holes: `<tool_call>\n{"name": "` NAME `", "arguments": ` ARGUMENTS
`}\n</tool_call>`. Marks are text here; the engine looks up which of them are single tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any


class Hole(Enum):
    """A variable part between the literals of a call; COUNT grows by one from call to call."""

    NAME = "name"
    ARGUMENTS = "arguments"
    ID = "id"
    COUNT = "count"


FormPiece = str | Hole


class CallLayout(Enum):
    """The arrangement of a call's name and arguments.

    OBJECT: one JSON object with both under keys. KEYED: `{"name": {arguments}}`. HEADER: the name
    among literals, then the arguments as one JSON object. TAGS: each argument between marks of its
    own. INLINE: `name(key="value", other=3)`, with brackets, quotes and separators of its own.
    """

    OBJECT = "object"
    KEYED = "keyed"
    HEADER = "header"
    TAGS = "tags"
    INLINE = "inline"


class Strings(Enum):
    """The spelling of a string's characters between its marks."""

    RAW = "raw"
    JSON = "json"
    PYTHON = "python"
    HTML = "html"


class Literals(Enum):
    """The spelling of lists and objects: `["a", true]` or `['a', True]`."""

    JSON = "json"
    PYTHON = "python"


@dataclass(frozen=True)
class Keys:
    """The places of a call's parts in an object of layout OBJECT: paths of keys; `id` may be empty.

    `encoded`: the arguments stand in it as a string of JSON.
    """

    name: tuple[str, ...] = ("name",)
    arguments: tuple[str, ...] = ("arguments",)
    id: tuple[str, ...] = ()
    encoded: bool = False


@dataclass(frozen=True)
class Tags:
    """The marks around the arguments of TAGS and INLINE: `opening` KEY `middle` VALUE `closing`.

    Strings have a middle and a closing of their own if those differ (quotes are part of them).
    `closing` may repeat the key, which stands there as KEY. `wrap` stands around odd strings.
    `values` is the spelling of nested values.
    """

    opening: str
    middle: str
    closing: str
    string_middle: str
    string_closing: str
    between: str
    strings: Strings = Strings.RAW
    wrap: tuple[str, str] = ("", "")
    values: Literals = Literals.JSON

    @property
    def parted(self) -> bool:
        """True if marks separate key from value and argument from argument."""
        marks = (self.opening, self.middle, self.closing, self.string_middle, self.string_closing)
        return all(mark.strip() for mark in marks)


# No template writes it, so it can stand for a key in a closing mark.
KEY = "\x00"


@dataclass(frozen=True)
class Reasoning:
    """The marks around a model's reasoning; `start` is empty if only its end is ever written."""

    start: str
    end: str


@dataclass(frozen=True)
class Channels:
    """Messages with headers in one answer (harmony): `start` role `channel` NAME `message` text.

    A header that holds `recipient` and a tool's name makes its message a call; `reasoning` names
    the channels of reasoning; any other channel holds text.
    """

    start: str
    channel: str
    message: str
    ends: tuple[str, ...]
    recipient: str
    reasoning: tuple[str, ...]
    final: str
    role: str = "assistant"


class ArgumentsAs(Enum):
    """The form in which a template wants a call's arguments."""

    OBJECT = "object"
    TEXT = "text"


class ContentAs(Enum):
    """The content that a template wants for an answer that is only calls."""

    EMPTY = "empty"
    NONE = "none"
    ABSENT = "absent"


@dataclass(frozen=True)
class Input:
    """The dicts from which a template shows calls.

    `follow`: only if a message follows them. `parts`: content is a list of parts.
    """

    arguments: ArgumentsAs = ArgumentsAs.OBJECT
    content: ContentAs = ContentAs.EMPTY
    follow: bool = False
    named_ids: bool = False
    parts: bool = False


@dataclass(frozen=True)
class Form:
    """One way of writing calls.

    `id` is the form of a call's own id: empty if the text has none, else pieces (Kimi's
    `functions.` NAME `:` COUNT). `optional` are marks that may precede a call that has none of its
    own (Llama's python_tag). `parallel` is False if a template shows one call only. `special` are
    the marks that are single tokens, with their ids, once the engine has looked. `words` is a mark
    in front of an answer's words, and no part of them.
    """

    layout: CallLayout
    call: tuple[FormPiece, ...]
    start: str = ""
    between: str = ""
    end: str = ""
    keys: Keys = field(default_factory=Keys)
    tags: Tags | None = None
    id: tuple[FormPiece, ...] = ()
    optional: tuple[str, ...] = ()
    words: str = ""
    parallel: bool = True
    input: Input = field(default_factory=Input)
    native: bool = True
    special: tuple[tuple[str, int], ...] = ()
    channels: Channels | None = None

    @property
    def head(self) -> str:
        """The literal before a call's first hole."""
        first = self.call[0] if self.call else ""
        return first if isinstance(first, str) else ""

    @property
    def foot(self) -> str:
        """The literal behind a call's last hole."""
        last = self.call[-1] if self.call else ""
        return last if isinstance(last, str) else ""

    @cached_property
    def lead(self) -> str:
        """Everything before the first call's name, or before the object that holds it."""
        lead = self.start + self.head
        if self.layout in (CallLayout.OBJECT, CallLayout.KEYED):
            lead = lead.partition("{")[0].rstrip().removesuffix("[")
        return lead

    @cached_property
    def lead_marks(self) -> tuple[str, ...]:
        """The marks that may stand before a call, in order, each once."""
        return _once([*self.optional, *marks_in(self.lead)])

    @cached_property
    def tail_marks(self) -> tuple[str, ...]:
        """The marks that may stand behind a call, in order, each once."""
        foot, end = self.foot, self.end
        if self.layout in (CallLayout.OBJECT, CallLayout.KEYED):
            foot, end = foot.lstrip("}] \n"), end.lstrip("] \n")
        return _once([*marks_in(foot), *marks_in(end)])

    @cached_property
    def openings(self) -> tuple[str, ...]:
        """The marks that begin calls anywhere in an answer; none if calls have no marks.

        Models leave marks out, so each one that no prose has may open a call.
        """
        marks = [mark for mark in self.lead_marks if is_mark(mark)]
        if not marks and self.lead.strip(_BRACKETS):
            marks = [self.lead.strip().partition("\n")[0]]
        return tuple(marks)

    @property
    def as_json(self) -> bool:
        """True if all arguments are one JSON object."""
        return self.layout in (CallLayout.OBJECT, CallLayout.KEYED, CallLayout.HEADER)

    @property
    def literals(self) -> Iterator[str]:
        """Every literal, so that the engine can look for single tokens among them."""
        yield from (self.start, self.between, self.end)
        yield from (piece for piece in self.call if isinstance(piece, str))
        if self.tags is not None:
            tags = self.tags
            yield from (tags.opening, tags.middle, tags.closing, tags.between)
            yield from (tags.string_middle, tags.string_closing)
        if self.channels is not None:
            yield from (self.channels.start, self.channels.channel, self.channels.message)
            yield self.channels.ends[0]


class NoForm(ValueError):
    """No form of calls could be learned from a template; the message has the reason."""


class UnreadForm(NoForm):
    """The template shows calls, in a way that can't be read back."""


def bare_openings(form: Form, tools: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The beginnings, without spaces, of answers that are calls without marks around them.

    Models write these whose form has none, and others that leave theirs out.
    """
    openings = ['{"name":', '[{"name":', '{"type":"function"', '{"function":']
    openings += ["{'name':", "[{'name':"]
    if form.layout is CallLayout.INLINE:
        names = [str(tool["function"]["name"]) for tool in tools if "function" in tool]
        openings += [f"{bracket}{name}(" for name in names for bracket in ("", "[")]
    elif form.layout is CallLayout.HEADER:
        # The prompt may have written the mark of the first call.
        names = [str(tool["function"]["name"]) for tool in tools if "function" in tool]
        between = "".join(str(form.call[form.call.index(Hole.NAME) + 1]).split())
        openings += [f"{name}{between}{{" for name in names]
    elif not form.openings:
        openings.append("".join((form.start + form.head).split()))
    return tuple(one for one in dict.fromkeys(openings) if one)


_BRACKETS = "[](){},;:\"'`= \n"
_PAIRS = {"<": ">", "[": "]"}


def marks_in(literal: str) -> tuple[str, ...]:
    """The marks of a literal: `<tool_call>` and `<function=` of `<tool_call> <function=`.

    The beginning of an object or list, and single brackets, are no marks.
    """
    marks: list[str] = []
    at = 0
    while at < len(literal):
        if literal[at].isspace():
            at += 1
            continue
        end = _mark_end(literal, at)
        marks.append(literal[at:end])
        at = end
    return tuple(marks)


def _mark_end(literal: str, at: int) -> int:
    """The end of the mark that begins at `at`."""
    opener = literal[at]
    if opener in _PAIRS:
        close = literal.find(_PAIRS[opener], at)
        inner = literal[at + 1 : close if close > 0 else len(literal)]
        if close > 0 and not (set(inner) & set("\n<{\"'") - {opener}):
            return close + 1
        if opener == "[":
            return at + 1
    if opener in "{}](),;":
        return at + 1
    end = at + 1
    while end < len(literal) and not literal[end].isspace() and literal[end] not in "<[{(":
        end += 1
    return end


def is_mark(text: str) -> bool:
    """True if `text` marks a call anywhere: no word, and more than brackets."""
    return len(text.strip(_BRACKETS)) > 1 and not text[0].isalnum() and text[0] not in _BRACKETS[2:]


def _once(marks: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(marks))
