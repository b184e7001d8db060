"""The line for the user when an answer was cut."""

from __future__ import annotations

from ..engine.events import Finished
from ..engine.request import DEFAULT_MAX_TOKENS, GenerationRequest


def told_cut(event: Finished, request: GenerationRequest) -> str:
    """One line: what was cut, where, and what to do; "" for an answer that is whole."""
    if not event.cut and event.reason != "length":
        return ""
    count = event.usage.generated
    tokens = "1 token" if count == 1 else f"{count} tokens"
    inside = f" inside {event.cut}" if event.cut else ""
    if not inside and event.reasoning and not event.text:
        inside = " inside its reasoning"
    return f"the answer was cut{inside} after {tokens} ({_reason(event, request)})"


def _reason(event: Finished, request: GenerationRequest) -> str:
    if event.reason != "length":
        return "a stop string" if event.stopped_by else "the model ended it there"
    most = request.max_tokens
    if most is None or event.usage.generated < most:
        return "the model's context is full; begin a new conversation"
    if most == DEFAULT_MAX_TOKENS:
        return f"max_tokens is {most} unless you say more: -o unlimited 1"
    return f"max_tokens is {most}"
