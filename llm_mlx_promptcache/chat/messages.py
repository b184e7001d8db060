"""One neutral form of messages, and checks of conversations that can't be answered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from .checks import check_json, check_text
from .generated import Generated, ToolCall, nothing

__all__ = ["Generated", "Message", "Role", "ToolCall", "check_messages"]

Role = Literal["system", "developer", "user", "assistant", "tool"]

_ROLES: tuple[str, ...] = get_args(Role)
# The parts that each role may carry; all may carry text and metadata.
_BELONGS = {
    "reasoning": ("assistant",),
    "tool_calls": ("assistant",),
    "tool_call_id": ("tool",),
    "is_error": ("tool",),
}


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    An answer may hold `reasoning` and `tool_calls`, and `generated` if it is one of ours. A tool's
    result (role "tool") names its tool and the id of the call, and may be an error. `images` are
    declared but refused until models with vision run. `metadata` is the application's own: no
    template reads it. The first `stable` characters of a user's text are likely to come back with
    another rest (a document before a question). The last `unmade` of the calls could not be made
    (unreadable ones, say); they are answered like others.
    """

    role: Role
    # A conversation's text is in no repr, so it is in no log or traceback either.
    content: str = field(repr=False)
    generated: Generated | None = field(default=None, repr=False)
    reasoning: str = field(default="", repr=False)
    tool_calls: tuple[ToolCall, ...] = field(default=(), repr=False)
    name: str = field(default="", repr=False)
    tool_call_id: str = field(default="", repr=False)
    is_error: bool = field(default=False, repr=False)
    images: tuple[Any, ...] = field(default=(), repr=False)
    metadata: Mapping[str, Any] = field(default_factory=nothing, repr=False, hash=False)
    stable: int = 0
    unmade: int = 0

    def unchanged(self, fingerprint: str) -> bool:
        """True if this is our model's answer, with every visible part unchanged."""
        # Calls that could not be made were shown as such.
        made = self.tool_calls[: len(self.tool_calls) - self.unmade]
        return (
            self.role == "assistant"
            and self.generated is not None
            and bool(self.generated.ids)
            and self.generated.matches(
                self.content, fingerprint, reasoning=self.reasoning, tool_calls=made
            )
        )

    def to_template(self) -> dict[str, Any]:
        """The dict that chat templates read, in the form that most of them expect."""
        made: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.name:
            made["name"] = self.name
        if self.reasoning:
            made["reasoning_content"] = self.reasoning
        if self.tool_call_id:
            made["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            made["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": dict(call.arguments)},
                }
                for call in self.tool_calls
            ]
        return made


def check_messages(messages: Sequence[Message]) -> None:
    """ValueError that names index and field if a conversation can't be answered.

    Refused: a list that is empty; a result without its call; parts in a role that has no such part;
    images. Accepted: two messages of one role in a row, answers in front or at the end, calls that
    got no result, a system prompt alone, empty messages.
    """
    if not messages:
        raise ValueError("messages is empty; give at least one message")
    for index, message in enumerate(messages):
        _check_message(index, message)
    _check_results(messages)


def check_continued(messages: Sequence[Message]) -> None:
    """ValueError if the last message is no answer that could go on from its end."""
    last = len(messages) - 1
    if last < 0 or messages[last].role != "assistant":
        said = f"messages[{last}].role is {messages[last].role!r}" if messages else "there is none"
        raise ValueError(
            f"continue_final continues an answer, but {said}; end with an assistant's message"
        )
    if messages[last].tool_calls:
        raise ValueError(
            f"messages[{last}] ends with calls, and continue_final only continues text; send their"
            " results, or leave continue_final out"
        )


def _check_message(index: int, message: Message) -> None:
    where = f"messages[{index}]"
    if message.role not in _ROLES:
        raise ValueError(
            f"{where}.role is {str(message.role)[:40]!r}; use one of {', '.join(_ROLES)}"
        )
    for name in ("content", "reasoning", "name", "tool_call_id"):
        check_text(f"{where}.{name}", getattr(message, name))
    if message.images:
        raise ValueError(
            f"{where}.images holds {len(message.images)}, and images are not supported yet;"
            " send text only"
        )
    for name, roles in _BELONGS.items():
        if getattr(message, name) and message.role not in roles:
            raise ValueError(
                f"{where}.{name} is set on a message of role {message.role!r};"
                f" only {roles[0]!r} messages have it"
            )
    _check_calls(where, message.tool_calls)


def _check_calls(where: str, calls: Sequence[ToolCall]) -> None:
    ids: dict[str, int] = {}
    for number, call in enumerate(calls):
        field = f"{where}.tool_calls[{number}]"
        check_text(f"{field}.name", call.name)
        check_text(f"{field}.id", call.id)
        if not call.name:
            raise ValueError(f"{field}.name is empty; give the name of the tool")
        if not isinstance(call.arguments, Mapping):
            kind = type(call.arguments).__name__
            raise ValueError(f"{field}.arguments is a {kind}; give a dict")
        check_json(f"{field}.arguments", call.arguments)
        if call.id and call.id in ids:
            raise ValueError(f"{field}.id is that of tool_calls[{ids[call.id]}]; give each its own")
        ids[call.id] = number


def _check_results(messages: Sequence[Message]) -> None:
    """Every result answers a call before it: by its id, or else in the calls' order."""
    for index, call in results(messages):
        if call is None and messages[index].tool_call_id:
            raise ValueError(
                f"messages[{index}].tool_call_id is"
                f" {messages[index].tool_call_id[:40]!r}, but no earlier answer has a call with"
                " that id; send the answer that made the call too"
            )
        if call is None:
            raise ValueError(
                f"messages[{index}].role is 'tool', but no earlier answer has a call without a"
                " result; send the answer that made the call too"
            )


def results(messages: Sequence[Message]) -> Iterator[tuple[int, ToolCall | None]]:
    """For each tool result, by its index, the call that it answers; None if there is none."""
    open_calls: list[ToolCall] = []
    by_id: dict[str, ToolCall] = {}
    for index, message in enumerate(messages):
        if message.role == "assistant":
            open_calls = list(message.tool_calls)
            by_id.update((call.id, call) for call in message.tool_calls if call.id)
        elif message.role == "tool":
            call = by_id.get(message.tool_call_id) if message.tool_call_id else None
            if not message.tool_call_id and open_calls:
                call = open_calls[0]
            open_calls = [other for other in open_calls if other is not call]
            yield index, call
