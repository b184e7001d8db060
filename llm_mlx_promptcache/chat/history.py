"""The history of a prompt: how its last answer was asked for, and what has changed since."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from .asked import ENTRY, MOST_MESSAGES, Asked, entries, path_digests, short_digest
from .generated import Generated, canonical_json
from .messages import Message
from .tool_schemas import canonical_tools
from .transcript import Transcript

ChangeReason = Literal[
    "system",
    "tools",
    "arguments",
    "edited",
    "removed",
    "inserted",
    "thinking",
    "rewritten",
    "model",
]
_LETTERS = {"system": "s", "developer": "d", "user": "u", "assistant": "a", "tool": "t"}
# Changes that make it another participant's prompt in the same conversation.
_ANOTHERS = ("system", "tools", "arguments")


class Change(NamedTuple):
    """The change since an answer, and the message it is in; None if only tokens show it."""

    reason: ChangeReason
    message: int | None = None


class History(NamedTuple):
    """The last answer that a prompt may go on from, and what has changed since.

    `latest` is None if no answer has a record of its prompt; it is the one of message `at`.
    `wanted` tokens of the prompt its turn had computed, or would have but for the `change`.
    `messages` and `tools` are the prompt's own digests; `told` as in `Asked`.
    """

    messages: str = ""
    tools: str = ""
    latest: Asked | None = None
    at: int = 0
    wanted: int = 0
    change: Change | None = None
    told: bool = False


class _Recorded(NamedTuple):
    """An earlier answer: the message's index, its record, and the record of its prompt."""

    at: int
    generated: Generated
    asked: Asked


def history_of(
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    transcript: Transcript,
    fingerprint: str,
) -> History:
    """The history of these messages, read by the model `fingerprint`."""
    mine = History(digest_of_messages(messages), _digest_of_tools(tools))
    answers = list(_answers(messages))
    if not answers:
        return mine
    told = any(answer.asked.told for answer in answers)
    own = [answer for answer in answers if answer.generated.fingerprint == fingerprint]
    last = (own or answers)[-1]
    mine = mine._replace(latest=last.asked, at=last.at, told=told)
    until = max(0, transcript.ends[last.at] - 1)
    if not own:
        return mine._replace(wanted=until, change=Change("model"))
    going_on = _going_on(own, transcript)
    if going_on and going_on[-1] is last:
        return mine._replace(wanted=last.asked.length)
    change = _change(messages, mine, last, own, transcript)
    if going_on and _is_anothers(change, mine, last):
        base = going_on[-1]
        return mine._replace(latest=base.asked, at=base.at, wanted=base.asked.length)
    return mine._replace(wanted=until, change=change)


def entry_of(message: Message) -> str:
    """A message's entry in `Asked.messages`: a digest of all that a template may show of it."""
    calls = [[call.canonical(), call.id] for call in message.tool_calls]
    names = [message.name, message.tool_call_id, message.is_error]
    texts = [message.content.strip(), message.reasoning.strip()]
    said = short_digest(canonical_json([message.role, texts, calls, names]))
    return _LETTERS.get(message.role, "?") + said[: ENTRY - 1]


def digest_of_messages(messages: Sequence[Message]) -> str:
    """The entries of `messages` in `Asked.messages`: one for each, one for all over the limit."""
    made = "".join(map(entry_of, messages[:MOST_MESSAGES]))
    if len(messages) <= MOST_MESSAGES:
        return made
    rest = "".join(map(entry_of, messages[MOST_MESSAGES:]))
    return made + "+" + short_digest(rest)[: ENTRY - 1]


def _digest_of_tools(tools: Sequence[Mapping[str, Any]]) -> str:
    return short_digest(canonical_json(canonical_tools(tools))) if tools else ""


def _answers(messages: Sequence[Message]) -> Iterable[_Recorded]:
    for index, message in enumerate(messages):
        generated = message.generated
        if generated is not None and generated.asked is not None:
            yield _Recorded(index, generated, generated.asked)


def _going_on(answers: Sequence[_Recorded], transcript: Transcript) -> list[_Recorded]:
    """The answers whose whole path the prompt begins with."""
    digests = path_digests(transcript.ids, (answer.asked.length for answer in answers))
    return [one for one in answers if digests.get(one.asked.length) == one.asked.path]


def _change(
    messages: Sequence[Message],
    mine: History,
    last: _Recorded,
    own: Sequence[_Recorded],
    transcript: Transcript,
) -> Change:
    """The reason why the prompt does not begin with the last turn's path, and where it differs."""
    was, now = last.asked.entries, entries(mine.messages)[: last.at]
    at = _first_difference(was, now)
    if at is not None and any(entry[0] in "sd" for entry in (*was[at : at + 1], *now[at : at + 1])):
        return Change("system", at)
    if last.asked.tools != mine.tools:
        return Change("tools")
    if at is not None:
        return _changed_message(messages, was, now, at)
    if not messages[last.at].unchanged(last.generated.fingerprint) and last.generated.ids:
        return _changed_answer(messages[last.at], last.at)
    if (rewritten := _rewritten(own, transcript)) is not None:
        return rewritten
    # Even the first answer's prompt begins differently, and no message has changed.
    same = last.generated.rendered.get("arguments") == transcript.rendered.get("arguments")
    return Change("rewritten" if same else "arguments")


def _first_difference(was: Sequence[str], now: Sequence[str]) -> int | None:
    both = min(len(was), len(now))
    found = next((at for at in range(both) if was[at] != now[at]), both)
    return None if found == len(was) == len(now) else found


def _changed_message(
    messages: Sequence[Message], was: Sequence[str], now: Sequence[str], at: int
) -> Change:
    if at >= MOST_MESSAGES:
        return Change("edited")  # among those that share one digest
    more = len(now) - len(was)
    if more < 0 and was[at - more :] == now[at:]:
        return Change("removed", at)
    if more > 0 and was[at:] == now[at + more :]:
        return Change("inserted", at)
    return _changed_answer(messages[at], at)


def _changed_answer(message: Message, at: int) -> Change:
    """The change of an answer: edited, or without its thinking."""
    asked = message.generated.asked if message.generated is not None else None
    thoughtless = asked is not None and not message.reasoning and asked.thought == entry_of(message)
    return Change("thinking" if thoughtless else "edited", at)


def _rewritten(own: Sequence[_Recorded], transcript: Transcript) -> Change | None:
    """The message that the template now writes differently, since more was said; None for none.

    The end of an answer's prompt is the last place that is unchanged, and the answer behind it has
    changed: mostly by its thinking, or by text in between (tools).
    """
    digests = path_digests(transcript.ids, (one.asked.shared for one in own))
    for one in reversed(own):
        if digests.get(one.asked.shared) == one.asked.shared_path:
            at = transcript.message_at(one.asked.shared)
            return Change("thinking" if one.asked.thought and at == one.at else "rewritten", at)
    return None


def _is_anothers(change: Change, mine: History, last: _Recorded) -> bool:
    """True if an answer came from another prompt: an agent's, or a branch beside this one."""
    if change.reason != "inserted":
        return change.reason in _ANOTHERS
    assert change.message is not None
    more = last.at - len(last.asked.entries)
    beside = entries(mine.messages)[change.message : change.message + more]
    return all(entry[0] in "at" for entry in beside)
