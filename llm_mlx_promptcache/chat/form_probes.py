"""Probes of a template that make its form of calls show, and its answers, remembered."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

from .forms import ArgumentsAs, ContentAs, Input
from .template_work import TooMuchWork

# Words that no template has. Keys are in alphabetical order: some templates sort them.
ASK = "Quovadisne?"
ANSWER = "Zephyrquark"
NAMES = ("probe_first", "probe_other")
ID, OTHER_ID = "kq7w3zt9v", "jx5r8mf2b"
ARGUMENTS: tuple[dict[str, Any], dict[str, Any]] = (
    {"alpha_key": "Vostokword", "beta_key": "Wembleyword"},
    {"alpha_key": "Xeroxword", "beta_key": "Yonkersword"},
)
LIST = ["Vostokword", True]
NUMBERS = {"alpha_key": 47110815, "beta_key": 19283746}
ODD = 'a "b" c\'s \\d & <e>\n\u00e9f'
_RESULT = "Resultquark"
_LATER = "Laterquark?"
_PRINTED = re.compile(r"[\"']type[\"']: ?[\"']text[\"']")
THOUGHT = "Ponderquark"
# The fields by which templates know an answer's reasoning.
FIELDS = ("reasoning_content", "reasoning", "thinking", "thought")


class Call(NamedTuple):
    """A call that a template is asked to show."""

    name: str
    arguments: dict[str, Any]
    id: str


def _tool(name: str) -> dict[str, Any]:
    properties = {
        "alpha_key": {"type": "string", "description": "A text."},
        "beta_key": {"type": "string", "description": "A text."},
        "count_key": {"type": "integer", "description": "A number."},
        "list_key": {"type": "array", "items": {"type": "string"}, "description": "A list."},
        "wish_key": {"type": "boolean", "description": "A flag."},
    }
    function = {
        "name": name,
        "description": "A tool.",
        "parameters": {"type": "object", "properties": properties, "required": ["alpha_key"]},
    }
    return {"type": "function", "function": function}


TOOLS = [_tool(name) for name in NAMES]
# Odd values, which a form must read back before it is used.
PROOF: list[list[Call]] = [
    [
        Call(NAMES[0], {"alpha_key": 'a "b" {c}, [d]', "count_key": -3, "wish_key": True}, ID),
        Call(NAMES[1], {"alpha_key": "12", "list_key": ["x", "y z"]}, OTHER_ID),
    ]
]


class Refused(ValueError):
    """The template refused a probe."""


class Probe:
    """Renders conversations with `apply`: the text behind the user's words.

    Nothing is rendered twice, and after a rendering without end nothing at all.
    """

    def __init__(self, apply: Callable[..., str]) -> None:
        self._apply = apply
        self._known: dict[str, str | Refused] = {}
        self._endless: Refused | None = None
        self.renderings = 0

    def calls(self, given: Input, calls: Sequence[Call], content: str = "") -> str:
        """An answer that makes `calls`; raises Refused."""
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if not content and given.content is ContentAs.NONE:
            message["content"] = None
        elif not content and given.content is ContentAs.ABSENT:
            del message["content"]
        message["tool_calls"] = [
            {
                "id": _id(call, number, given),
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call, given)},
            }
            for number, call in enumerate(calls)
        ]
        later = []
        if given.follow:
            for shown, call in zip(message["tool_calls"], calls, strict=True):
                made = {"role": "tool", "content": _RESULT, "tool_call_id": shown["id"]}
                later.append({**made, "name": call.name})
        text = self._render([message, *later], prompt=False)
        return text.partition(_RESULT)[0]

    def beside(self, given: Input) -> str | None:
        """A call with words beside it; None if the template refuses that."""
        try:
            return self.calls(given, [Call(NAMES[0], ARGUMENTS[0], ID)], ANSWER)
        except Refused:
            return None

    def plain(self) -> str | None:
        """An answer of words."""
        return self._shown([{"role": "assistant", "content": ANSWER}], prompt=False)

    def earlier(self, content: str) -> str | None:
        """An answer with another question behind it."""
        answer = {"role": "assistant", "content": content}
        return self._shown([answer, {"role": "user", "content": _LATER}], prompt=True)

    def prompt(self) -> str | None:
        """The prompt for an answer."""
        return self._shown([], prompt=True)

    @cached_property
    def parts(self) -> bool:
        """True if the template reads content as a list of parts, and no text."""
        ask = {"role": "user", "content": ASK}
        plain = self._once([ask], {}, prompt=True)
        if isinstance(plain, str) and ASK in plain:
            return False
        parted = self._once([_in_parts(ask)], {}, prompt=True)
        # Some print the list, as Python or JSON writes it.
        return isinstance(parted, str) and ASK in parted and not _PRINTED.search(parted)

    def whole_prompt(self) -> str:
        """Everything the template shows of tools and a question; empty if it refuses them."""
        text = self._whole([], {}, prompt=True)
        return "" if isinstance(text, Refused) else text

    def thought(self, words: Mapping[str, Any]) -> str | None:
        """An answer of words with a field of reasoning."""
        return self._shown([{"role": "assistant", "content": ANSWER, **words}], prompt=False)

    def switched(self, arguments: Mapping[str, Any]) -> str | None:
        """The prompt for an answer, with an argument of the template's own."""
        return self._shown([], prompt=True, arguments=arguments)

    def _shown(
        self,
        messages: list[dict[str, Any]],
        arguments: Mapping[str, Any] = MappingProxyType({}),
        *,
        prompt: bool,
    ) -> str | None:
        try:
            return self._render(messages, arguments, prompt=prompt)
        except Refused:
            return None

    def _render(
        self,
        messages: list[dict[str, Any]],
        arguments: Mapping[str, Any] = MappingProxyType({}),
        *,
        prompt: bool,
    ) -> str:
        text = self._whole(messages, arguments, prompt=prompt)
        if isinstance(text, Refused):
            raise text
        _, found, after = text.rpartition(ASK)
        if not found:
            raise Refused("the user's words are not shown")
        return after

    def _whole(
        self, messages: list[dict[str, Any]], arguments: Mapping[str, Any], *, prompt: bool
    ) -> str | Refused:
        """The template's text, rendered once for each conversation."""
        asked = [{"role": "user", "content": ASK}, *messages]
        if self.parts:
            asked = [_in_parts(message) for message in asked]
        return self._once(asked, arguments, prompt=prompt)

    def _once(
        self, asked: list[dict[str, Any]], arguments: Mapping[str, Any], *, prompt: bool
    ) -> str | Refused:
        key = json.dumps([asked, prompt, dict(arguments)])
        if key not in self._known:
            self._known[key] = self._endless or self._asked(asked, arguments, prompt=prompt)
        return self._known[key]

    def _asked(
        self, messages: list[dict[str, Any]], arguments: Mapping[str, Any], *, prompt: bool
    ) -> str | Refused:
        self.renderings += 1
        try:
            return self._apply(messages, tools=TOOLS, add_generation_prompt=prompt, **arguments)
        except TooMuchWork as error:
            self._endless = Refused(type(error).__name__)  # nor does the next one end
            return self._endless
        except Exception as error:
            return Refused(type(error).__name__)


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(message.get("content"), str):
        return message
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _id(call: Call, number: int, given: Input) -> str:
    return f"functions.{call.name}:{number}" if given.named_ids else call.id


def _arguments(call: Call, given: Input) -> Any:
    return json.dumps(call.arguments) if given.arguments is ArgumentsAs.TEXT else call.arguments
