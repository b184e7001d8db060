"""LangChain's messages <-> chat/messages.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage

from llm_mlx_promptcache.chat.messages import Generated, Message, Role

METADATA = "mlx_cached"

_ROLES: dict[str, Role] = {"system": "system", "human": "user", "ai": "assistant"}


def from_langchain(messages: Sequence[BaseMessage]) -> Iterator[Message]:
    """LangChain's messages in the neutral form; ValueError for what is not text yet."""
    for index, message in enumerate(messages):
        role = message.role if isinstance(message, ChatMessage) else message.type
        role = role.removesuffix("MessageChunk").lower()
        known = _ROLES.get(role, role)
        if known not in ("system", "developer", "user", "assistant"):
            raise ValueError(f"messages[{index}] has the role {role!r}, which is not supported yet")
        yield Message(cast("Role", known), _text(index, message), _generated(message))


def to_metadata(generated: Generated) -> dict[str, object]:
    """What `additional_kwargs` keeps so that an answer is replayed token by token."""
    return {METADATA: generated.to_json()}


def _text(index: int, message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    for block in message.content:
        if not isinstance(block, str) and block.get("type") != "text":
            kind = block.get("type")
            raise ValueError(
                f"messages[{index}] holds a {kind!r} block; only text is supported yet"
            )
    return str(message.text)


def _generated(message: BaseMessage) -> Generated | None:
    kept = message.additional_kwargs.get(METADATA) if isinstance(message, AIMessage) else None
    return Generated.from_json(kept) if kept is not None else None
