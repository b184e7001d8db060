"""The length that a conversation may reach, and the places where it may be cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal, NamedTuple, cast, get_args

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

SizeKind = Literal["fraction", "tokens", "messages"]
# Such as ("tokens", 3000): LangChain's own word, and its own form.
ContextSize = tuple[SizeKind, float]
# Several sizes at once, all of which must be reached.
Clause = Mapping[str, float]
Trigger = ContextSize | Clause | Sequence[ContextSize | Clause]


class Length(NamedTuple):
    """A conversation in messages and tokens, and the tokens that the model's context holds."""

    messages: int
    tokens: int
    context: int | None


def clauses_of(trigger: Trigger | None) -> tuple[dict[str, float], ...]:
    """A trigger as clauses, one of which must be met in all its parts; ValueError by name."""
    if trigger is None:
        return ()
    one = isinstance(trigger, Mapping) or _is_size(trigger)
    several = isinstance(trigger, Sequence) and not isinstance(trigger, str)
    if not (one or (several and trigger)):
        raise ValueError(
            f'trigger is {repr(trigger)[:60]}; give a kind and a value, as in ("tokens", 3000),'
            " or a list of them; None waits until a conversation does not fit"
        )
    given: Sequence[Any] = [trigger] if one else cast("Sequence[Any]", trigger)
    return tuple(map(_clause, given))


def checked_size(name: str, given: Any) -> ContextSize:
    """A size as it was given; ValueError names its fault."""
    if not _is_size(given):
        raise ValueError(
            f'{name} is {str(given)[:60]!r}; give a kind and a value, as in ("tokens", 3000)'
        )
    kind, value = given
    if kind not in get_args(SizeKind):
        raise ValueError(f"{name} is in {str(kind)[:40]!r}; use {', '.join(get_args(SizeKind))}")
    whole = kind != "fraction"
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise ValueError(f"{name} is {value!r} {kind}; give a {'whole ' if whole else ''}number")
    if value <= 0 or (not whole and value > 1):
        raise ValueError(f"{name} is {value!r} {kind}; give more than 0{'' if whole else ', to 1'}")
    return kind, value


def is_due(clauses: Sequence[Clause], length: Length) -> bool:
    """True if all of one clause is reached."""
    return any(all(_reached(kind, clause[kind], length) for kind in clause) for clause in clauses)


def tokens_of(size: ContextSize, context: int | None) -> int:
    """A size in tokens or as a fraction of the context, in tokens; ValueError without a context."""
    kind, value = size
    if kind == "tokens":
        return int(value)
    if context is None:
        raise ValueError(
            f"a fraction ({value}) is asked for, and nobody knows how many tokens this model's"
            ' context holds; give ("tokens", ...)'
        )
    return max(1, int(context * value))


def safe_cuts(messages: Sequence[BaseMessage]) -> list[int]:
    """The messages before which a conversation may be cut, ascending.

    A call and its results stay on one side, and so do calls of the last answer that still wait for
    theirs. No part begins with a tool's result.
    """
    made: dict[str, int] = {}
    # For each message: the last one that answers its calls.
    until = list(range(len(messages)))
    waiting: set[str] = set()
    last = 0
    for index, message in enumerate(messages):
        if isinstance(message, AIMessage):
            calls = [*message.tool_calls, *message.invalid_tool_calls]
            made |= {call["id"]: index for call in calls if call["id"]}
            waiting = {call["id"] for call in message.tool_calls if call["id"]}
            last = index
        for id in _answered(message):
            waiting.discard(id)
            if id in made:
                until[made[id]] = index
    if waiting:
        until[last] = len(messages)
    reached = list(accumulate(until, max))
    return [
        index
        for index in range(1, len(messages))
        if reached[index - 1] < index and not isinstance(messages[index], ToolMessage)
    ]


def first_within(weights: Sequence[float], most: float) -> int:
    """The index from which messages weigh at most `most` together; the last one always stays."""
    total = 0.0
    for index in range(len(weights) - 1, -1, -1):
        total += weights[index]
        if total > most:
            return min(index + 1, len(weights) - 1)
    return 0


def receding(cuts: Sequence[int]) -> Iterator[int]:
    """The last of `cuts`, and earlier ones in steps that double, the first one last."""
    step = 1
    while step < len(cuts):
        yield cuts[-step]
        step *= 2
    yield from cuts[:1]


def _is_size(given: object) -> bool:
    return isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], str)


def _clause(given: Any) -> dict[str, float]:
    sizes = list(given.items()) if isinstance(given, Mapping) else [given]
    if not sizes:
        raise ValueError("trigger has a clause that asks for nothing; name fraction, tokens, ...")
    return dict(checked_size("trigger", size) for size in sizes)


def _reached(kind: str, value: float, length: Length) -> bool:
    if kind == "messages":
        return length.messages >= value
    size: ContextSize = ("tokens", value) if kind == "tokens" else ("fraction", value)
    return length.tokens >= tokens_of(size, length.context)


def _answered(message: BaseMessage) -> Iterator[str]:
    """The ids of the calls whose results a message holds."""
    if isinstance(message, ToolMessage):
        yield message.tool_call_id
    elif message.type == "human" and isinstance(message.content, list):
        for block in message.content:  # as Anthropic's messages have them
            if isinstance(block, dict) and block.get("type") == "tool_result":
                yield str(block.get("tool_use_id"))
