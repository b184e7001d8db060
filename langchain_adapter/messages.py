"""LangChain's messages -> chat/messages.py."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, ToolMessage

from llm_mlx_promptcache.chat.messages import Generated, Message, Role, ToolCall

from .media import ToolMedia, is_media, placeholder

# The key of `additional_kwargs` under which an answer's exact tokens travel.
METADATA = "mlx_cached"
REASONING = "reasoning_content"

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "developer",
    "human": "user",
    "user": "user",
    "ai": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
# ChatOpenAI's mark of a SystemMessage that is a developer's.
_OPENAI_ROLE = "__openai_role__"
# Blocks of answers that say nothing new: calls are in `tool_calls`, and chat templates have no form
# for the work of a provider's own tools on its servers.
_BESIDE = frozenset(
    [
        *("tool_call", "tool_call_chunk", "tool_use", "input_json_delta", "function_call"),
        *("invalid_tool_call", "redacted_thinking", "server_tool_call", "server_tool_call_chunk"),
        *("server_tool_result", "server_tool_use", "web_search_call", "code_interpreter_call"),
    ]
)
# Keys under which blocks of any kind hold text.
_SAYING = ("text", "refusal", "content", "transcript")


class _Content(NamedTuple):
    """The text of a message's content, and the results of tools in it."""

    text: str
    reasoning: str
    results: tuple[Message, ...]


def from_langchain(
    messages: Sequence[BaseMessage], tool_media: ToolMedia = "refuse"
) -> Iterator[Message]:
    """LangChain's messages in the neutral form; ValueError names a part that is no text.

    `tool_media` decides about images and the like in tools' results.
    """
    for index, message in enumerate(messages):
        yield from _translated(f"messages[{index}]", message, tool_media)


def index_of(messages: Sequence[BaseMessage], at: int) -> int:
    """The index of the LangChain message from which the neutral one at `at` was made."""
    for index, message in enumerate(messages):
        at -= sum(1 for _ in _translated(f"messages[{index}]", message, "placeholder"))
        if at < 0:
            return index
    return max(0, len(messages) - 1)


def _translated(where: str, message: BaseMessage, media: ToolMedia) -> Iterator[Message]:
    role = _role(where, message)
    content = _content(where, role, message.content, media)
    if role == "assistant":
        yield _answer(message, content)
    elif role == "tool":
        yield Message(
            role,
            content.text,
            name=message.name or "",
            tool_call_id=str(getattr(message, "tool_call_id", "") or ""),
            is_error=isinstance(message, ToolMessage) and message.status == "error",
        )
    else:
        yield from content.results
        if content.text or not content.results:
            yield Message(role, content.text, name=message.name or "")


def _role(where: str, message: BaseMessage) -> Role:
    said = message.role if isinstance(message, ChatMessage) else message.type
    # The chunk of a human's message, say, has the type "HumanMessageChunk".
    said = said.removesuffix("MessageChunk").lower()
    if said == "system" and message.additional_kwargs.get(_OPENAI_ROLE) == "developer":
        return "developer"
    if said not in _ROLES:
        raise ValueError(f"{where} has the role {said[:40]!r}; use one of {', '.join(_ROLES)}")
    return _ROLES[said]


def _answer(message: BaseMessage, content: _Content) -> Message:
    kept = message.additional_kwargs.get(METADATA)
    generated = Generated.from_json(kept) if kept is not None else None
    reasoning = content.reasoning or message.additional_kwargs.get(REASONING)
    unmade = _unmade(message)
    return Message(
        "assistant",
        content.text,
        generated,
        reasoning=reasoning if isinstance(reasoning, str) else "",
        tool_calls=(*_calls(message), *unmade),
        unmade=len(unmade),
        # Frameworks set an agent's name afterwards, so it was in no prompt of ours.
        name="" if generated is not None else message.name or "",
    )


def _calls(message: BaseMessage) -> tuple[ToolCall, ...]:
    calls = message.tool_calls if isinstance(message, AIMessage) else []
    return tuple(ToolCall(call["name"], call["args"], call["id"] or "") for call in calls)


def _unmade(message: BaseMessage) -> tuple[ToolCall, ...]:
    """Calls that could not be read; their results say so to the model."""
    wrong = message.invalid_tool_calls if isinstance(message, AIMessage) else []
    return tuple(
        ToolCall(str(call["name"] or "unknown"), _arguments(call["args"] or ""), str(call["id"]))
        for call in wrong
        if call["id"]
    )


def _arguments(text: str) -> dict[str, Any]:
    """Arguments as an object, which templates want; text that is none goes into one unchanged."""
    try:
        found = json.loads(text)
        if isinstance(found, str):  # text that could be read, told as text
            text, found = found, json.loads(found)
    except (ValueError, RecursionError):
        return {"arguments": text}
    return found if isinstance(found, dict) else {"arguments": text}


def _content(
    where: str, role: Role, content: str | Sequence[str | Mapping[str, Any]], media: ToolMedia
) -> _Content:
    if isinstance(content, str):
        return _Content(content, "", ())
    texts: list[str] = []
    reasonings: list[str] = []
    results: list[Message] = []
    for block in content:
        kind = "text" if isinstance(block, str) else str(block.get("type"))
        if isinstance(block, str):
            texts.append(block)
        elif kind in ("text", "text-plain") and isinstance(block.get("text"), str):
            texts.append(block["text"])
        elif kind in ("reasoning", "thinking") and role == "assistant":
            reasonings.append(str(block.get(kind) or ""))
        elif kind == "tool_result" and role == "user":
            results.append(_result(where, block, media))
        elif role == "tool" and media == "placeholder" and is_media(kind):
            texts.append(placeholder(kind, block))
        elif role != "assistant" or not _is_beside(kind, block):
            raise ValueError(_refusal(where, role, kind))
    return _Content("".join(texts), "".join(reasonings), tuple(results))


def _refusal(where: str, role: Role, kind: str) -> str:
    """The reason why a block can't be shown to the model, and what to do."""
    said = f"{where} holds a {kind[:40]!r} block, and only text is supported;"
    if role == "tool" and is_media(kind):
        return (
            f'{said} tool_media="placeholder" tells the model that it was there, or put it in words'
        )
    return f"{said} leave that block out or put it in words"


def _is_beside(kind: str, block: Mapping[str, Any]) -> bool:
    """True if a block of an answer says nothing to the user: providers add new ones each month."""
    return kind in _BESIDE or not (is_media(kind) or _has_text(block))


def _has_text(value: object) -> bool:
    if isinstance(value, Mapping):
        said = any(isinstance(value.get(key), str) and value[key] for key in _SAYING)
        return said or any(map(_has_text, value.values()))
    return isinstance(value, list) and any(map(_has_text, value))


def _result(where: str, block: Mapping[str, Any], media: ToolMedia) -> Message:
    """A tool's result as Anthropic's messages have it: a block of a user's message."""
    said = cast("str | list[str | dict[str, Any]]", block.get("content") or "")
    return Message(
        "tool",
        _content(where, "tool", said, media).text,
        tool_call_id=str(block.get("tool_use_id") or ""),
        is_error=block.get("is_error") is True,
    )
