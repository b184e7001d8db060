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
    ReasoningDelta,
    TextDelta,
    Usage,
)
from ..engine.notes import is_new_loss, new_notes
from .records import to_metadata
from .requests import Question

_log = logging.getLogger(__name__)


class ResponseBuilder:
    """One response of llm's as it comes: the engine's events -> llm's."""

    def __init__(self, response: llm.Response | llm.AsyncResponse, question: Question) -> None:
        self._response = response
        self._question = question
        # Of the last part that was told. A reasoning part without text is kept where it carries
        # something, a text part without text is not: so an empty answer is carried by the former.
        self._type = "reasoning"
        self._call: str | None = None
        # What llm was told, which is what its history will hold. The calls are None until they
        # are whole.
        self._texts: list[str] = []
        self._apart = False  # whether the next text stands on a line of its own
        self._reasonings: list[str] = []
        self._calls: dict[str, ToolCall | None] = {}

    def stream_events(self, event: Event) -> Iterator[StreamEvent]:
        """The stream events of one of the engine's; CutShort where the answer is no whole one."""
        match event:
            case TextDelta(text):
                yield self._said(text)
            case ReasoningDelta(text):
                self._reasonings.append(text)
                yield self._next("reasoning", text)
            case CallName(id, name):
                self._calls[id] = None
                yield self._next("tool_call_name", name, id)
            case CallArguments(id, text):
                yield self._next("tool_call_args", text, id)
            case InvalidCall():
                yield from self._not_made(event)
            case Finished():
                yield from self._end(event)
            case _:
                pass

    def _next(self, type: str, chunk: str, call: str | None = None) -> StreamEvent:
        self._type, self._call = type, call
        return StreamEvent(type=type, chunk=chunk, tool_call_id=call)

    def _said(self, text: str) -> StreamEvent:
        text, self._apart = "\n" * self._apart + text, False
        self._texts.append(text)
        return self._next("text", text)

    def _not_made(self, call: InvalidCall) -> Iterator[StreamEvent]:
        """A call of no tool, which llm's loop refuses by its name; else text that is no call."""
        if call.arguments is not None:
            self._calls[call.id] = ToolCall(call.name, call.arguments, call.id)
            yield self._next("tool_call_name", call.name, call.id)
            yield self._next("tool_call_args", json.dumps(call.arguments), call.id)
            return
        self._apart = bool(self._texts)
        yield self._said(call.text)
        self._apart = True
        _log.warning("the answer holds a call that can't be made, as text: %s", call.error)

    def _end(self, event: Finished) -> Iterator[StreamEvent]:
        usage = event.usage
        self._response.set_usage(
            input=usage.prompt, output=usage.generated, details=_details(usage)
        )
        self._response.response_json = _response_json(event, self._question)
        for note in new_notes(event.fingerprint, event.notes):
            _log.warning("%s", note)
        self._warn_of_loss(event)
        event.whole()
        for misfit in event.misfits:
            what = "a call's arguments do" if misfit.call else "the answer does"
            _log.warning("%s not fit the schema: %s", what, misfit.what)
        self._calls.update((call.id, call) for call in event.tool_calls)
        calls = [call for call in self._calls.values() if call is not None]
        for call in calls:
            self._response.add_tool_call(
                llm.ToolCall(
                    name=call.name, arguments=dict(call.arguments), tool_call_id=call.id or None
                )
            )
        settings = self._question.settings
        if not calls:
            # Only the turns of a tool loop have a schema to pass on.
            settings = replace(settings, schema=None)
        yield StreamEvent(
            type="tool_call_args" if self._call else self._type,
            chunk="",
            tool_call_id=self._call,
            provider_metadata=to_metadata(self._record(event, calls), settings),
        )

    def _warn_of_loss(self, event: Finished) -> None:
        """Say once a conversation that it lost what its last turn had."""
        if event.reuse.reason == "tools" and self._question.lost_tools:
            return  # said already, by the tools' names
        if is_new_loss(event.reuse):
            _log.warning("reuse %s (told once a conversation)", event.reuse)

    def _record(self, event: Finished, calls: Sequence[ToolCall]) -> Generated:
        """What replays the answer as long as llm's history shows it as it was told."""
        made = Generated.of(
            event.ids,
            "".join(self._texts),
            event.fingerprint,
            reasoning="".join(self._reasonings),
            tool_calls=calls,
            rendered=event.rendered,
        )
        return replace(made, asked=event.asked)


def _details(usage: Usage) -> dict[str, Any]:
    """Our counts, and OpenAI's name for one of them: servers hand on what they find."""
    return {
        "cached": usage.cached,
        "prefilled": usage.prefilled,
        "reasoning": usage.reasoning,
        "drafted": usage.drafted,
        "accepted": usage.accepted,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    }


def _response_json(event: Finished, question: Question) -> dict[str, Any]:
    """What `llm logs --json` shows of an answer; the names that llm-mlx has are the same here."""
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
    if event.invalid_calls:
        made["invalid_calls"] = [
            {"name": call.name, "text": call.text, "error": call.error}
            for call in event.invalid_calls
        ]
    if event.notes:
        made["notes"] = list(event.notes)
    if event.misfits:
        made["misfits"] = [misfit._asdict() for misfit in event.misfits]
    if question.lost_tools:
        made["lost_tools"] = list(question.lost_tools)
    return made


def _rate(tokens: int, seconds: float) -> float | None:
    return round(tokens / seconds, 1) if seconds > 0 else None
