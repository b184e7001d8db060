"""The engine's events -> llm's stream events, calls, usage and response JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import llm
from llm.parts import StreamEvent

from ..chat.generated import Generated, ToolCall
from ..engine.events import (
    CallArguments,
    CallName,
    Event,
    Finished,
    InvalidCall,
    Loading,
    Progress,
    ReasoningDelta,
    TextDelta,
    Usage,
)
from ..engine.notes import is_new_loss, new_notes
from .command import LlmCommand
from .cuts import told_cut
from .records import settings_metadata, to_metadata
from .requests import Question

_log = logging.getLogger(__name__)


class ResponseBuilder:
    """One response of llm's as it comes: the engine's events -> llm's.

    Calls are reported at its end, once it is known which of them are whole: llm can't be asked to
    forget what it was told, and half a call would stay in its history. Incomplete calls become
    text.
    """

    def __init__(
        self,
        response: llm.Response | llm.AsyncResponse,
        question: Question,
        command: LlmCommand,
    ) -> None:
        self._response = response
        self._question = question
        self._command = command
        self._begun = False  # True once the given beginning of the answer was passed on
        self._prompt: Progress | None = None
        # The type of the last part. llm keeps a reasoning part without text if it carries metadata,
        # but no such text part: so an empty answer is carried by the former.
        self._type = "reasoning"
        self._call: str | None = None
        # The texts that llm was given, and that its history will hold.
        self._texts: list[str] = []
        self._apart = False  # True if the next text goes on a line of its own
        self._reasonings: list[str] = []
        # Each call so far: its name, and pieces of its arguments. Calls of no tool are whole.
        self._pieces: dict[str, list[str]] = {}
        self._no_tools: dict[str, ToolCall] = {}

    def stream_events(self, event: Event) -> Iterator[StreamEvent]:
        """Translate one event of the engine's into stream events of llm's."""
        if not isinstance(event, Loading | Progress):
            yield from self._beginning()
        match event:
            case Progress():
                self._prompt = event
            case TextDelta(text):
                yield self._said(text)
            case ReasoningDelta(text):
                self._reasonings.append(text)
                yield self._next("reasoning", text)
            case CallName(id, name):
                self._pieces[id] = [name]
            case CallArguments(id, text):
                self._pieces[id].append(text)
            case InvalidCall():
                yield from self._not_made(event)
            case Finished():
                yield from self._end(event)
            case _:
                pass

    def stopped(self) -> Iterator[StreamEvent]:
        """The end of an answer that its reader stopped: everything up to then, calls as text."""
        for name, *arguments in self._pieces.values():
            yield from self._as_text(f"{name} {''.join(arguments)}".rstrip())
        self._response.response_json = {"finish_reason": "stopped"}
        if self._prompt is not None:  # the number of generated tokens is unknown
            total, cached = self._prompt.total, self._prompt.cached
            details = {"cached": cached, "prefilled": total - cached}
            self._response.set_usage(input=total, details=details)
        metadata = settings_metadata(replace(self._question.settings, schema=None))
        yield StreamEvent(type=self._type, chunk="", provider_metadata=metadata)
        kept = "; llm -c goes on from it" if self._command.is_continued else ""
        self._warn(f"the answer was stopped{kept}")
        self._command.take_log()

    @property
    def has_come(self) -> bool:
        """True if any of the answer was passed on."""
        return bool(self._texts or self._reasonings or self._pieces)

    @property
    def has_ended(self) -> bool:
        """True if the answer was passed on to its end."""
        return self._response.response_json is not None

    def _beginning(self) -> Iterator[StreamEvent]:
        """The given beginning of the answer, which the user sees as text too."""
        begun, self._begun = self._begun, True
        if not begun and self._question.prefill:
            yield self._said(self._question.prefill)

    def _warn(self, line: str) -> None:
        self._command.end_line()
        _log.warning("%s", line)

    def _next(self, type: str, chunk: str, call: str | None = None) -> StreamEvent:
        self._type, self._call = type, call
        self._command.shows(type, chunk)
        return StreamEvent(type=type, chunk=chunk, tool_call_id=call)

    def _said(self, text: str) -> StreamEvent:
        text, self._apart = "\n" * self._apart + text, False
        self._texts.append(text)
        return self._next("text", text)

    def _not_made(self, call: InvalidCall) -> Iterator[StreamEvent]:
        """A call of no tool, which llm's loop refuses by its name; anything else as text."""
        if call.arguments is not None:
            self._no_tools[call.id] = ToolCall(call.name, call.arguments, call.id)
            self._pieces[call.id] = [call.name, json.dumps(call.arguments)]
            return
        yield from self._as_text(call.text)
        self._warn(f"the answer holds a call that can't be made, as text: {call.error}")

    def _as_text(self, call: str) -> Iterator[StreamEvent]:
        """The text of an incomplete call, on lines of its own."""
        if call:
            self._apart = bool(self._texts)
            yield self._said(call)
            self._apart = True

    def _end(self, event: Finished) -> Iterator[StreamEvent]:
        usage = event.usage
        self._response.set_usage(
            input=usage.prompt, output=usage.generated, details=_details(usage)
        )
        self._response.response_json = _response_json(event, self._question)
        for half in self._halves(event):
            yield from self._as_text(half.text)
        calls = self._whole_calls(event)
        for call in calls:
            yield from self._reported(call)
        self._warn_of_all(event)
        cut = told_cut(event, self._question.request)
        if cut and not (calls or "".join(self._texts).strip()):
            self._command.end_with(1)
        settings = self._question.settings
        if not calls:
            # Only the turns of a tool loop have a schema to pass on.
            settings = replace(settings, schema=None)
            self._command.take_log()
        yield StreamEvent(
            type="tool_call_args" if self._call else self._type,
            chunk="",
            tool_call_id=self._call,
            provider_metadata=to_metadata(self._record(event, calls), settings),
        )

    def _reported(self, call: ToolCall) -> Iterator[StreamEvent]:
        """A whole call, in the pieces in which it came."""
        name, *arguments = self._pieces.get(call.id) or [call.name, _json(call)]
        yield self._next("tool_call_name", name, call.id)
        for piece in arguments:
            yield self._next("tool_call_args", piece, call.id)
        self._response.add_tool_call(
            llm.ToolCall(
                name=call.name, arguments=dict(call.arguments), tool_call_id=call.id or None
            )
        )

    def _warn_of_all(self, event: Finished) -> None:
        """Warn of all that a user should know of an answer, in the order in which it matters."""
        for note in new_notes(event.fingerprint, event.notes):
            self._warn(note)
        self._warn_of_loss(event)
        for misfit in event.misfits:
            what = "a call's arguments do" if misfit.call else "the answer does"
            self._warn(f"{what} not fit the schema: {misfit.what}")
        if line := told_cut(event, self._question.request):
            kept = "; llm -c goes on from it" if self._command.is_continued else ""
            self._warn(f"{line}{kept}")

    def _warn_of_loss(self, event: Finished) -> None:
        """Warn once a conversation that it lost rows of its last turn."""
        if event.reuse.reason == "tools" and self._question.lost_tools:
            return  # said already, by the tools' names
        if is_new_loss(event.reuse):
            self._warn(f"reuse {event.reuse} (told once a conversation)")

    def _whole_calls(self, event: Finished) -> list[ToolCall]:
        """The complete calls, and those of no tool, in the order in which they came."""
        made = {call.id: call for call in event.tool_calls} | self._no_tools
        order = dict.fromkeys([*self._pieces, *made])
        return [made[id] for id in order if id in made]

    def _halves(self, event: Finished) -> list[InvalidCall]:
        """Calls that had begun and came to nothing; pieces stand in for those without a text."""
        half = [] if event.half_call is None else [event.half_call]
        unmade = [*(call for call in event.invalid_calls if call.id in self._pieces), *half]
        known = {call.id for call in unmade} | {call.id for call in event.tool_calls}
        rest = [
            InvalidCall(name, f"{name} {''.join(arguments)}".rstrip(), "", id)
            for id, (name, *arguments) in self._pieces.items()
            if id not in known and id not in self._no_tools
        ]
        return [*rest, *unmade]

    def _record(self, event: Finished, calls: Sequence[ToolCall]) -> Generated:
        """The record that replays the answer as long as llm's history shows it as it was told."""
        ids = event.begun.ids + event.ids
        if not event.ids or (self._question.prefill and not event.begun.ids):
            ids = ()  # they do not match the text shown
        made = Generated.of(
            ids,
            "".join(self._texts),
            event.fingerprint,
            reasoning="".join(self._reasonings),
            tool_calls=calls,
            rendered=event.rendered,
        )
        return replace(made, asked=event.asked)


def _details(usage: Usage) -> dict[str, Any]:
    """Our counts, and OpenAI's name for one of them: servers pass on whatever they find."""
    return {
        "cached": usage.cached,
        "prefilled": usage.prefilled,
        "reasoning": usage.reasoning,
        "drafted": usage.drafted,
        "accepted": usage.accepted,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    }


def _response_json(event: Finished, question: Question) -> dict[str, Any]:
    """The JSON of an answer in `llm logs --json`; names that llm-mlx has too are the same here."""
    usage, timings = event.usage, event.timings
    made: dict[str, Any] = {
        "finish_reason": event.reason,
        "cache": str(event.reuse),
        "reuse": event.reuse.plain(),
        "from_memory": usage.cached - event.from_disk,
        "from_disk": event.from_disk,
        "prompt_tps": _rate(usage.prefilled, timings.first_token),
        "generation_tps": _rate(usage.generated, timings.decode),
        "peak_memory": round(event.peak_bytes / 1e9, 3),
        "load_seconds": round(timings.load, 3),
        "first_token_seconds": round(timings.first_token, 3),
        "decode_seconds": round(timings.decode, 3),
    }
    if question.settings.reference:
        made["reference"] = question.settings.reference
    if event.fingerprint:
        made["fingerprint"] = event.fingerprint
    if event.namespace:
        made["namespace"] = event.namespace
    if event.stopped_by:
        made["stopped_by"] = event.stopped_by
    if event.cut:
        made["cut"] = event.cut
    unmade = [*event.invalid_calls, *([event.half_call] if event.half_call else [])]
    if unmade:
        made["invalid_calls"] = [
            {"name": call.name, "text": call.text, "error": call.error} for call in unmade
        ]
    if event.notes:
        made["notes"] = list(event.notes)
    if event.misfits:
        made["misfits"] = [misfit._asdict() for misfit in event.misfits]
    if question.lost_tools:
        made["lost_tools"] = list(question.lost_tools)
    return made


def _json(call: ToolCall) -> str:
    return json.dumps(dict(call.arguments), ensure_ascii=False)


def _rate(tokens: int, seconds: float) -> float | None:
    return round(tokens / seconds, 1) if seconds > 0 else None
