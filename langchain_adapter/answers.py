"""The engine's events -> LangChain's messages and chunks."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.utils.json import parse_partial_json

from llm_mlx_promptcache.engine.events import (
    CallArguments,
    CallName,
    CutShort,
    Event,
    Finished,
    InvalidCall,
    Logprob,
    ReasoningDelta,
    TextDelta,
)
from llm_mlx_promptcache.engine.notes import new_notes

from .messages import METADATA, REASONING
from .reuse import cache_metadata, recorded, warn_of_loss

M = TypeVar("M", AIMessage, AIMessageChunk)

PROVIDER = "mlx-cached"
# The key of `response_metadata` that names the part in which an answer was cut.
CUT = "cut"
# The key of the parts of its schema that an answer breaks.
MISFITS = "misfits"
# The key of the reasons why calls can't be made.
INVALID = "invalid_calls"


@dataclass
class MessageBuilder:
    """One answer as it comes: its events become chunks or, at the end, one message.

    `model` is named in its metadata; with `as_blocks` the content is LangChain's v1 blocks;
    `messages` are those being answered. A call that is incomplete when the answer ends is invalid:
    half a call never looks like a whole one.
    """

    model: str
    as_blocks: bool = field(default=False, kw_only=True)
    messages: Sequence[BaseMessage] = field(default=(), kw_only=True, repr=False)
    _kind: str = ""
    _index: int = -1
    _calls: dict[str, int] = field(default_factory=dict)
    # The name of each call that was passed on, and its arguments so far.
    _names: dict[str, str] = field(default_factory=dict)
    _arguments: dict[str, str] = field(default_factory=dict)

    def chunk(self, event: Event) -> AIMessageChunk | None:
        """The chunk for an event; None if LangChain has none."""
        self._note(event)
        made = self._chunk(event)
        return _in_blocks(made) if made is not None and self.as_blocks else made

    def _chunk(self, event: Event) -> AIMessageChunk | None:
        if isinstance(event, TextDelta):
            return AIMessageChunk(content=self._said("text", event.text))
        if isinstance(event, ReasoningDelta):
            return self._reasoned(event.text)
        if isinstance(event, CallName):
            self._calls[event.id] = self._block(f"call {event.id}")
            return self._called(event.id, name=event.name)
        if isinstance(event, CallArguments):
            return self._called(event.id, arguments=event.text)
        if isinstance(event, InvalidCall):
            return self._not_made(event)
        if isinstance(event, Finished):
            return self._last(event)
        return None

    def message(self, event: Event) -> AIMessage | None:
        """The whole answer at its last event, None before."""
        self._note(event)
        if not isinstance(event, Finished):
            return None
        unmade = self._unmade(event)
        closing = self._closing(event, unmade)
        if event.reasoning and not self.as_blocks:
            closing["additional_kwargs"][REASONING] = event.reasoning
        calls = [
            tool_call(name=call.name, args=dict(call.arguments), id=call.id)
            for call in event.tool_calls
        ]
        invalid = [
            invalid_tool_call(
                name=call.name, args=_unreadable(call.text), id=call.id, error=call.error
            )
            for call in unmade
        ]
        content = self._content(event)
        made = AIMessage(content, tool_calls=calls, invalid_tool_calls=invalid, **closing)
        return _in_blocks(made, unmade) if self.as_blocks else made

    def _note(self, event: Event) -> None:
        """Remember the parts of calls that were passed on."""
        if isinstance(event, CallName):
            self._names[event.id], self._arguments[event.id] = event.name, ""
        elif isinstance(event, CallArguments):
            self._arguments[event.id] += event.text

    def _unmade(self, event: Finished) -> list[InvalidCall]:
        """The calls that can't be made, with the one that the answer ended in as the last.

        Calls that were passed on keep that text, with a break at its end that nothing can mend.
        """
        invalid = [*event.invalid_calls, *([event.half_call] if event.half_call else [])]
        known = {call.id for call in event.tool_calls} | {call.id for call in invalid}
        invalid += [
            InvalidCall(name, "", str(CutShort(event.cut or "this call")), id)
            for id, name in self._names.items()
            if id not in known
        ]
        told = self._arguments
        return [
            replace(
                call,
                name=self._names[call.id],
                text=told[call.id] + _breaking(told[call.id]),
            )
            if call.id in told
            else call
            for call in invalid
        ]

    def _last(self, event: Finished) -> AIMessageChunk:
        """The chunk that ends an answer, and breaks the text of calls that can't be made."""
        unmade = self._unmade(event)
        said = {call.id for call in event.invalid_calls}
        pieces, blocks = [], []
        for call in unmade:
            if call.id in self._arguments:
                end = call.text[len(self._arguments[call.id]) :]
                index = self._calls[call.id]
                pieces.append(tool_call_chunk(name=None, args=end, id=None, index=index))
            elif call.id not in said:
                index = self._block(f"call {call.id}")
                args = _unreadable(call.text)
                pieces.append(tool_call_chunk(name=call.name, args=args, id=call.id, index=index))
                blocks.append({**_block_of(call), "index": index})
        content: str | list[str | dict[str, Any]] = [*blocks] if self.as_blocks else ""
        closing = self._closing(event, unmade, as_streamed=True)
        return AIMessageChunk(
            content=content, tool_call_chunks=pieces, chunk_position="last", **closing
        )

    def _content(self, event: Finished) -> str | list[str | dict[str, Any]]:
        if not self.as_blocks:
            return event.text
        blocks: list[str | dict[str, Any]] = []
        if event.reasoning:
            blocks.append({"type": "reasoning", "reasoning": event.reasoning})
        if event.text:
            blocks.append({"type": "text", "text": event.text})
        return blocks

    def _block(self, kind: str) -> int:
        """The number of the current block; another kind begins a new one."""
        if kind != self._kind:
            self._kind, self._index = kind, self._index + 1
        return self._index

    def _said(self, kind: Literal["text", "reasoning"], text: str) -> Any:
        index = self._block(kind)
        return [{"type": kind, kind: text, "index": index}] if self.as_blocks else text

    def _reasoned(self, text: str) -> AIMessageChunk:
        said = self._said("reasoning", text)
        if self.as_blocks:
            return AIMessageChunk(content=said)
        return AIMessageChunk(content="", additional_kwargs={REASONING: said})

    def _called(self, id: str, name: str = "", arguments: str = "") -> AIMessageChunk:
        return self._piece(name, arguments, id if name else None, self._calls[id])

    def _not_made(self, call: InvalidCall) -> AIMessageChunk:
        index = self._block(f"call {call.id}")
        made = self._piece(call.name, _unreadable(call.text), call.id, index)
        if self.as_blocks:
            made.content = [{**_block_of(call), "index": index}]
        return made

    def _piece(self, name: str, arguments: str, id: str | None, index: int) -> AIMessageChunk:
        """A piece of a call: pieces with one index are joined, so no text may have it."""
        piece = tool_call_chunk(name=name or None, args=arguments, id=id, index=index)
        content: str | list[str | dict[str, Any]] = [] if self.as_blocks else ""
        return AIMessageChunk(content=content, tool_call_chunks=[piece])

    def _closing(
        self, event: Finished, unmade: Sequence[InvalidCall], *, as_streamed: bool = False
    ) -> dict[str, Any]:
        """The fields beside an answer's text: usage, metadata, and the record that replays it."""
        for note in new_notes(event.fingerprint, event.notes):
            warnings.warn(note, stacklevel=2)
        warn_of_loss(event, self.messages)
        record = recorded(event.generated(as_streamed=as_streamed), event, self.messages)
        return {
            "additional_kwargs": {METADATA: record.to_json()},
            "usage_metadata": _usage(event),
            "response_metadata": {
                **_metadata(event, self.model, unmade),
                "cache": cache_metadata(event, self.messages),
            },
        }


def _in_blocks(message: M, invalid: Sequence[InvalidCall] = ()) -> M:
    """The message as LangChain makes it for a model of `output_version="v1"`, calls included.

    LangChain looks at the model alone, and a call may ask for it too; blocks that are there stay.
    Calls that can't be made come last: LangChain leaves them out.
    """
    told = {**message.response_metadata, "output_version": "v1"}
    blocks = [*message.content_blocks, *map(_block_of, invalid)]
    return message.model_copy(update={"content": blocks, "response_metadata": told})


def _block_of(call: InvalidCall) -> dict[str, Any]:
    args = _unreadable(call.text)
    beside = {"id": call.id, "name": call.name, "args": args, "error": call.error}
    return {"type": "invalid_tool_call", **beside}


def _breaking(text: str) -> str:
    """An end that makes the arguments passed on so far no object, however they are mended.

    LangChain closes open brackets and drops what does not fit, but gives up at a bracket that
    closes nothing, once strings are closed.
    """
    return next(end for end in ("]", "}", '"]', '"}', '""]', '""}') if _broken(text + end))


def _broken(text: str) -> bool:
    try:
        return not isinstance(parse_partial_json(text), dict)
    except (ValueError, RecursionError):
        return True


def _unreadable(text: str) -> str:
    """The text of a call that can't be made, so that LangChain can't take it for arguments.

    When chunks are added up, LangChain makes a call of anything that parses as an object.
    """
    try:
        readable = not text or isinstance(parse_partial_json(text), dict)
    except (ValueError, RecursionError):
        return text
    return json.dumps(text, ensure_ascii=False) if readable else text


def _usage(event: Finished) -> UsageMetadata:
    """All tokens of the prompt, those from the cache among them, as LangChain counts."""
    usage = event.usage
    return UsageMetadata(
        input_tokens=usage.prompt,
        output_tokens=usage.generated,
        total_tokens=usage.prompt + usage.generated,
        input_token_details=InputTokenDetails(cache_read=usage.cached),
        output_token_details=OutputTokenDetails(reasoning=usage.reasoning),
    )


def _metadata(event: Finished, model: str, unmade: Sequence[InvalidCall]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "model_name": model,
        "model_provider": PROVIDER,
        "finish_reason": event.reason,
        "drafts": {"drafted": event.usage.drafted, "accepted": event.usage.accepted},
        "timings": event.timings._asdict(),
    }
    if event.peak_bytes:
        made["peak_bytes"] = event.peak_bytes
    if event.cut:
        made[CUT] = event.cut
    if event.notes:
        made["notes"] = list(event.notes)
    if event.misfits:
        made[MISFITS] = [misfit._asdict() for misfit in event.misfits]
    if unmade:
        # LangChain drops the reason of a call that came in chunks.
        made[INVALID] = [{"id": call.id, "error": call.error} for call in unmade]
    if event.stopped_by:
        made["stop_sequence"] = event.stopped_by
    if event.logprobs:
        made["logprobs"] = {
            "content": [
                {**_logprob(token.chosen), "top_logprobs": [_logprob(one) for one in token.top]}
                for token in event.logprobs
            ]
        }
    return made


def _logprob(one: Logprob) -> dict[str, Any]:
    return {"token": one.text, "bytes": list(one.data), "logprob": one.logprob}
