"""The part of a conversation's next turn that is known before anybody says it."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import replace

from ..cache.trie import common_prefix
from ..chat.generated import ToolCall
from ..chat.messages import Message
from ..chat.transcript import Transcript
from .events import Finished
from .request import GenerationRequest

# Two possible messages: they differ from the first character on, and in length.
_SAID = ("Question?", "Another one.")
# A pass costs about as much as this many tokens: fewer are as cheap in the next turn's own pass.
_A_PASS = 16


def next_turns(request: GenerationRequest, finished: Finished) -> Iterator[GenerationRequest]:
    """Two requests that may follow an answer; any next turn begins as both of them do.

    An answer with calls is followed by a result of each, another one by a user's message. There are
    none where front ends keep an answer in their own way.
    """
    if request.warm or request.continue_final or finished.invalid_calls or finished.streamed:
        return
    answer = Message(
        "assistant",
        finished.text,
        finished.generated(),
        reasoning=finished.reasoning,
        tool_calls=finished.tool_calls,
    )
    for said in _SAID:
        following = [_result(call, said) for call in finished.tool_calls]
        messages = (*request.messages, answer, *(following or [Message("user", said)]))
        yield replace(request, messages=messages)


def shared_part(one: Transcript, other: Transcript) -> Transcript:
    """The common beginning of two prompts, and one token more, which is never run."""
    length = common_prefix(one.ids, other.ids)
    boundaries = tuple(b for b in one.boundaries if b.position <= length)
    return one._replace(ids=one.ids[: length + 1], boundaries=boundaries)


def is_worth_a_pass(beginning: Transcript, path: array[int]) -> bool:
    """True if a next turn's beginning is more than the answer's own `path` and a few tokens."""
    length = len(beginning.ids) - 1
    parts = common_prefix(beginning.ids, path) < min(length, len(path))
    return parts or length - len(path) >= _A_PASS


def goes_on_from(request: GenerationRequest, earlier: GenerationRequest) -> bool:
    """True if a request continues the conversation of an earlier one."""
    return request.messages[: len(earlier.messages)] == earlier.messages


def _result(call: ToolCall, said: str) -> Message:
    return Message("tool", said, name=call.name, tool_call_id=call.id)
