"""A model's chat template, rendered as transformers renders it, in bounded work and memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from types import TracebackType
from typing import Any

import jinja2

from .template_environment import BoundedEnvironment, pieces_of
from .template_work import A_LETTER, A_PAIR, ADDED, LEAST, TemplateError, TooMuchWork, Work

_MOST_LETTERS = 1_000_000  # of the template itself; the longest known has 45,602
# The names of an answer's reasoning that templates know; transformers fills the first two.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A template's source, compiled once; safe from several threads. `name` is the model's."""

    def __init__(self, source: str, name: str) -> None:
        self.source = source
        self.name = name
        self._lock = threading.Lock()
        self._environment = BoundedEnvironment()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        strftime_now: Callable[[str], str] | None = None,
        **arguments: Any,
    ) -> str:
        """The text of `messages`; TooMuchWork, with the template's name, if it has no end.

        `strftime_now` replaces today's date. Raises whatever the template raises.
        """
        if not messages:
            raise ValueError("a chat template needs at least one message")
        values = _plain({"documents": None, **arguments, "tools": tools})
        values["messages"] = [_message(message) for message in messages]
        values["strftime_now"] = strftime_now or _now
        with self._lock:
            return self._bounded(values)

    def _bounded(self, values: dict[str, Any]) -> str:
        environment = self._environment
        environment.work = Work(1 << 62)
        size = environment.work.weigh({k: v for k, v in values.items() if not callable(v)})
        tools = values.get("tools")
        told = len(tools) if isinstance(tools, list | tuple) else 0
        environment.work = Work(most_work(size, len(values["messages"]), told))
        try:
            return "".join(pieces_of(environment, self._compiled, values))
        except TooMuchWork as stopped:
            raise self._stopped(_line(self._compiled, stopped.__traceback__)) from None

    @cached_property
    def _compiled(self) -> jinja2.Template:
        if len(self.source) > _MOST_LETTERS:
            raise TemplateError(
                f"the chat template of {self.name} has {len(self.source)} characters; no more than"
                f" {_MOST_LETTERS} are taken: use another model"
            )
        try:
            return self._environment.from_string(self.source)
        except TooMuchWork:
            raise self._stopped(0) from None

    def _stopped(self, line: int) -> TooMuchWork:
        where = f" in line {line}" if line else ""
        return TooMuchWork(
            f"the chat template of {self.name} was stopped{where}: it makes more text or takes more"
            " steps than any conversation of this length needs; use another model, or mend its"
            " template"
        )


def most_work(size: int, messages: int, tools: int = 0) -> int:
    """The limit for an input of so many letters and entries, and so many messages and tools."""
    return LEAST + A_LETTER * size + A_PAIR * messages**2 + size * tools // ADDED


def _line(template: jinja2.Template, trace: TracebackType | None) -> int:
    """The line of a template in which its work ended; 0 if that can't be told."""
    found = 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            found = template.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    return found


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates get it: nothing that is None, and its reasoning by its two names.

    The content beside calls may be None: some templates show calls only then.
    """
    none = {"content"} if message.get("tool_calls") else set()
    made = {key: _plain(v) for key, v in message.items() if v is not None or key in none}
    found = (made[key] for key in _REASONING if made.get(key) is not None)
    reasoning = next(found, None)
    if reasoning is not None:
        made = {"thinking": reasoning, **made, "reasoning_content": reasoning}
    return made


def _plain(value: Any) -> Any:
    """Plain JSON data, whatever the caller's classes are; other things by their kind alone."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    return f"<{type(value).__name__}>"
