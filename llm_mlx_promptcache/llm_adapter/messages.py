"""llm's messages -> the neutral form of chat/messages.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import cast

import llm
from llm.parts import AttachmentPart, Part, ReasoningPart, TextPart, ToolCallPart, ToolResultPart
from llm.parts import Message as LlmMessage

from ..chat.messages import Message, Role, ToolCall
from .records import generated_of


def messages_of(prompt: llm.Prompt) -> tuple[Message, ...]:
    """The whole chain; ValueError if it holds an attachment.

    `prompt.system` takes the place of an older system prompt (`llm -c -s NEW`), and is the only
    one if an application passed `messages=` without any. Fragments are marked as stable: the next
    question is likely to be about them too.
    """
    chain: Sequence[LlmMessage] = prompt.messages
    made: list[Message] = []
    if prompt.system and prompt.system != _said_as_system(chain):
        made.append(Message("system", prompt.system))
        chain = chain[1:] if chain and chain[0].role == "system" else chain
    for message in _once(chain):
        made.extend(_translated(message))
    if made and made[-1].role == "user" and prompt.fragments:
        head = "\n".join(str(fragment) for fragment in prompt.fragments)
        if made[-1].content.startswith(head):
            made[-1] = replace(made[-1], stable=len(head))
    return tuple(made)


def _said_as_system(chain: Iterable[LlmMessage]) -> str:
    """The text of all system messages, as llm-chat-completions-server repeats it beside them."""
    texts = (_text(message) for message in chain if message.role == "system")
    return "\n\n".join(filter(None, texts))


def _once(chain: Iterable[LlmMessage]) -> Iterator[LlmMessage]:
    """The chain, with a user's message that comes twice in a row only once.

    Datasette Agent has it in its history and gives it as the prompt too; its stored history, and
    so the next turn's, has it once.
    """
    before: LlmMessage | None = None
    for message in chain:
        if message.role != "user" or message != before:
            yield message
        before = message


def _translated(message: LlmMessage) -> Iterator[Message]:
    """Our messages for one of llm's: one, but for a tool message one for each result."""
    for part in message.parts:
        _refuse_attachments(part)
    if message.role == "tool":
        for part in message.parts:
            if isinstance(part, ToolResultPart):
                yield Message(
                    "tool",
                    part.output,
                    name=part.name,
                    tool_call_id=part.tool_call_id or "",
                    is_error=part.exception is not None,
                )
    elif message.role == "assistant":
        yield Message(
            "assistant",
            _text(message),
            generated_of(message),
            reasoning="".join(p.text for p in message.parts if isinstance(p, ReasoningPart)),
            tool_calls=tuple(_calls(message)),
        )
    else:
        yield Message(cast("Role", message.role), _text(message))


def _text(message: LlmMessage) -> str:
    return "".join(part.text for part in message.parts if isinstance(part, TextPart))


def _calls(message: LlmMessage) -> Iterator[ToolCall]:
    """The calls whose results follow; calls that another provider ran itself are left out."""
    for part in message.parts:
        if isinstance(part, ToolCallPart) and not part.server_executed:
            yield ToolCall(part.name, part.arguments, part.tool_call_id or "")


def _refuse_attachments(part: Part) -> None:
    found = list(getattr(part, "attachments", None) or [])
    if isinstance(part, AttachmentPart):
        found.append(part.attachment)
    if found:
        kind = getattr(found[0], "type", None) or "unknown type"
        raise ValueError(
            f"the conversation holds an attachment ({kind}), and mlx-cached takes text only;"
            " leave it out, or go on with a model that takes it"
        )
