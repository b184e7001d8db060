"""Where the prompt is put together: what a template has no place for is moved, in a fixed order.

A mend is a way to say the same otherwise: tools in the system prompt, a system prompt in the first
user message, calls as text. Which mends a template needs is found by probes when a model is loaded
(`models/probes.py`); each request is looked at anew, and gets more of them one at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import combinations
from typing import Any, NamedTuple

from .call_forms import plain_turns, tool_prompt, with_instructions
from .messages import Message
from .shown_words import Lost, lost_words
from .template_input import Turn, turns_of
from .template_work import TooMuchWork

Dicts = list[dict[str, Any]]
Apply = Callable[[Dicts, Mapping[str, Any]], str]

# So many mends are added to those that the probes found; more would not be the same conversation.
_MOST_ADDED = 3
# So often a conversation is rendered before it is refused; real templates show it within 50 times.
_MOST_TRIED = 256
_SYSTEM = ("system", "developer")


class Mend(Enum):
    """A way to say the same otherwise; the value is what it is remembered by."""

    PARTS = "parts"
    SYSTEM_IN_USER = "system-in-user"
    TOOLS_IN_SYSTEM = "tools-in-system"
    TOOLS_IN_USER = "tools-in-user"
    CALLS_ALONE = "calls-alone"
    TEXT_BESIDE = "text-beside"
    CALLS_AS_TEXT = "calls-as-text"
    LATER_IN_USER = "later-in-user"
    ONE_OF_A_ROLE = "one-of-a-role"
    NOTHING_EMPTY = "nothing-empty"
    ASKED_AGAIN = "asked-again"


# The template's own prompt for tools is replaced.
GENERIC_TOOLS = frozenset([Mend.TOOLS_IN_SYSTEM, Mend.TOOLS_IN_USER])
# What the user is told of a mend; the others move nothing.
_TOLD = {
    Mend.SYSTEM_IN_USER: "has no place for a system prompt: it stands in the first user message",
    Mend.TOOLS_IN_SYSTEM: "has no place for tools: they stand in the system prompt",
    Mend.TOOLS_IN_USER: "has no place for tools: they stand in the first user message",
    Mend.TEXT_BESIDE: "drops text beside calls: it stands in a message of its own",
    Mend.CALLS_AS_TEXT: "has no place for these calls and results: they stand there as text",
    Mend.LATER_IN_USER: (
        "has no place for system messages in mid-conversation: they stand in user messages"
    ),
    Mend.ASKED_AGAIN: (
        "has no place for an answer behind an answer: an empty user message stands between"
    ),
}


class Feature(Enum):
    """What of a conversation templates may have no place for."""

    WORDS = "words"
    SYSTEM = "system"
    TOOLS = "tools"
    CALLS = "calls"
    BESIDE = "beside"
    LATER = "later"


@dataclass(frozen=True)
class PromptForm:
    """The mends that a template needs, by what a conversation has; without any, none.

    `example` is a call as the template itself shows calls: tools that it has no place for are told
    with this form, and calls stay calls. Without it the prompt tells the generic form.
    """

    mends: Mapping[Feature, tuple[Mend, ...]]
    example: str = ""

    def start(self, features: Sequence[Feature]) -> frozenset[Mend]:
        """What a conversation with `features` begins with."""
        return frozenset(mend for one in features for mend in self.mends.get(one, ()))

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the facts of a model."""
        mends = {one.value: [mend.value for mend in mends] for one, mends in self.mends.items()}
        return {**mends, _EXAMPLE: self.example} if self.example else mends

    @classmethod
    def from_json(cls, data: object) -> PromptForm | None:
        """What `to_json` gave; None for anything else."""
        if not isinstance(data, dict):
            return None
        mends, example = {**data}, data.get(_EXAMPLE, "")
        mends.pop(_EXAMPLE, None)
        try:
            found = {Feature(one): tuple(map(Mend, mends)) for one, mends in mends.items()}
        except (ValueError, TypeError):
            return None
        return cls(found, example) if isinstance(example, str) else None


UNMENDED = PromptForm({})
_EXAMPLE = "example"  # no feature's name


class Fit(NamedTuple):
    """A conversation as a template shows it: its turns, their text, and what was mended."""

    turns: list[Turn]
    text: str
    mends: frozenset[Mend]


def told(mends: frozenset[Mend]) -> tuple[str, ...]:
    """One line for the user about each thing that was moved."""
    return tuple(f"this model's chat template {said}" for m, said in _TOLD.items() if m in mends)


class WordsLostError(Exception):
    """However the conversation is put, the template leaves out what was said."""


class _EnoughTried(TooMuchWork):
    """A conversation was put in as many ways as any is."""


class _Tries:
    """A template's renderings of one conversation, so many and no more; its first refusal."""

    def __init__(self, apply: Apply) -> None:
        self._apply = apply
        self._left = _MOST_TRIED
        self.refusal: Exception | None = None

    def __call__(self, made: Dicts, arguments: Mapping[str, Any]) -> str:
        if self._left == 0:
            raise _EnoughTried
        self._left -= 1
        try:
            return self._apply(made, arguments)
        except TooMuchWork:
            raise
        except Exception as error:
            self.refusal = self.refusal or error
            raise


def fit(
    messages: Sequence[Message], arguments: Mapping[str, Any], apply: Apply, form: PromptForm
) -> Fit:
    """The first way to put the conversation in which the template shows every word.

    WordsLostError names what no way shows; what the template raises where no way renders.
    """
    features = features_of(messages, tools=bool(arguments.get("tools")))
    refusal: Exception | None = None
    lost: Lost | None = None
    plain = [message.to_template() for message in messages]
    tries = _Tries(apply)

    def given(mends: frozenset[Mend]) -> str:
        return json.dumps(mended(plain, arguments, mends, form.example), default=str)

    as_text = not form.example
    for mends in _distinct(_ladder(form.start(features), features, as_text=as_text), given):
        try:
            fitted, missing = _tried(messages, arguments, tries, mends, form.example)
        except _EnoughTried:
            refusal = refusal or tries.refusal
            break
        except TooMuchWork:
            raise
        except Exception as error:
            refusal = refusal or error
            continue
        if missing is None:
            return fitted
        lost = lost or missing
    if lost is not None:
        raise WordsLostError(_named(lost))
    raise refusal or RuntimeError("no form of the prompt was tried")


def _tried(
    messages: Sequence[Message],
    arguments: Mapping[str, Any],
    apply: Apply,
    mends: frozenset[Mend],
    example: str,
) -> tuple[Fit, Lost | None]:
    def shown(made: Dicts, tools: Sequence[Mapping[str, Any]] | None) -> str:
        given = {**arguments, "tools": tools} if tools else arguments
        return apply(*mended(made, given, mends, example))

    tools = arguments.get("tools")
    turns, text = turns_of(messages, lambda made: shown(made, tools))
    if Mend.PARTS in mends and _prints_parts(messages, text):
        raise ValueError("the template prints parts of content as data")
    return Fit(turns, text, mends), lost_words(turns, text, tools or (), shown)


def _prints_parts(messages: Sequence[Message], text: str) -> bool:
    """Whether parts stand there as Python or JSON writes them; some conversations say so much."""
    return any(
        text.count(written) > sum(message.content.count(written) for message in messages)
        for written in ("'type': 'text'", '"type": "text"', '"type":"text"')
    )


def features_of(messages: Sequence[Message], *, tools: bool) -> tuple[Feature, ...]:
    """What a conversation has that templates may have no place for."""
    roles = [message.role for message in messages]
    leading = next((at for at, role in enumerate(roles) if role not in _SYSTEM), len(roles))
    called = [message for message in messages if message.tool_calls]
    has = {
        Feature.WORDS: True,
        Feature.SYSTEM: leading > 0,
        Feature.TOOLS: tools,
        Feature.CALLS: bool(called) or "tool" in roles,
        Feature.BESIDE: any(message.content.strip() for message in called),
        Feature.LATER: any(role in _SYSTEM for role in roles[leading:]),
    }
    return tuple(feature for feature, present in has.items() if present)


def mended(
    messages: Dicts, arguments: Mapping[str, Any], mends: frozenset[Mend], example: str = ""
) -> tuple[Dicts, Mapping[str, Any]]:
    """What the template is given: messages and arguments with all of `mends`.

    `example` is how calls are written (`PromptForm`).
    """
    if not mends:
        return messages, arguments
    made = messages
    for mend, change in _BEFORE_TOOLS.items():
        made = change(made) if mend in mends else made
    tools = arguments.get("tools")
    if tools and mends & GENERIC_TOOLS:
        arguments = {key: value for key, value in arguments.items() if key != "tools"}
        role = "system" if Mend.TOOLS_IN_SYSTEM in mends else "user"
        made = _with_tools(made, tool_prompt(tools, example), role)
    for mend, change in _BEHIND_TOOLS.items():
        made = change(made) if mend in mends else made
    return made, arguments


def asked_again(messages: Dicts) -> Dicts:
    """An empty question behind an answer that stands last (`Mend.ASKED_AGAIN`)."""
    answered = bool(messages) and messages[-1]["role"] == "assistant"
    return [*messages, {"role": "user", "content": ""}] if answered else messages


def _with_tools(messages: Dicts, text: str, role: str) -> Dicts:
    if role == "system":
        return with_instructions(messages, text, "system")
    return with_instructions(_system_in_user(messages), text, "user")


def _ladder(
    start: frozenset[Mend], features: Sequence[Feature], *, as_text: bool
) -> Iterator[frozenset[Mend]]:
    """What the probes found, and then more of what may help, as few as possible.

    `as_text`: where the prompt tells the tools, it tells the generic form, of which no template
    knows.
    """
    more = [m for m, one in _HELPS.items() if one in features and m not in start]
    for size in range(_MOST_ADDED + 1):
        for added in combinations(more, size):
            mends = start.union(added)
            if added and mends >= GENERIC_TOOLS:
                continue
            if as_text and mends & GENERIC_TOOLS and Feature.CALLS in features:
                # Calls stand there as the prompt says that they are written.
                mends |= {Mend.CALLS_AS_TEXT}
            yield mends


def _distinct(
    ladder: Iterator[frozenset[Mend]], given: Callable[[frozenset[Mend]], str]
) -> Iterator[frozenset[Mend]]:
    """Those that give the template something that none before gave it."""
    first = next(ladder)
    yield first  # most often the last too, so nothing is compared before
    seen = {given(first)}
    for mends in ladder:
        made = given(mends)
        if made not in seen:
            seen.add(made)
            yield mends


def _named(lost: Lost) -> str:
    """Why a conversation is refused: where and what, without its text."""
    where = "tools" if lost.at < 0 else f"messages[{lost.at}] (role {lost.role!r})"
    return (
        f"the model's chat template leaves out {lost.what} of {where}, however it is put; leave it"
        " out, say it in a user message, or use another model"
    )


def _in_parts(messages: Dicts) -> Dicts:
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else message
        for message in messages
    ]


def _system_in_user(messages: Dicts) -> Dicts:
    """What the system says in front, before the first user message's own words."""
    roles = [message["role"] for message in messages]
    count = next((at for at, role in enumerate(roles) if role not in _SYSTEM), len(roles))
    said = _joined(message.get("content") for message in messages[:count])
    rest = messages[count:]
    if not said:
        return rest or messages
    if rest and rest[0]["role"] == "user":
        first = {**rest[0], "content": _joined([said, rest[0]["content"]])}
        return [first, *rest[1:]]
    return [{"role": "user", "content": said}, *rest]


def _later_in_user(messages: Dicts) -> Dicts:
    """System messages behind the first in the user message that follows, or as one."""
    made: Dicts = []
    waiting: list[str] = []
    for message in messages:
        leading = all(one["role"] in _SYSTEM for one in made)
        if message["role"] in _SYSTEM and not (leading and not waiting):
            waiting.append(message["content"])
            continue
        if waiting and message["role"] == "user":
            message = {**message, "content": _joined([*waiting, message["content"]])}
        elif waiting:
            made.append({"role": "user", "content": _joined(waiting)})
        waiting = []
        made.append(message)
    return [*made, {"role": "user", "content": _joined(waiting)}] if waiting else made


def _calls_alone(messages: Dicts) -> Dicts:
    """Calls with no text beside them have no content at all, which some templates look for."""
    return [
        {**message, "content": None}
        if message.get("tool_calls") and not (message.get("content") or "").strip()
        else message
        for message in messages
    ]


def _text_beside(messages: Dicts) -> Dicts:
    """Text beside calls as an answer of its own, before them."""
    made: Dicts = []
    for message in messages:
        if message.get("tool_calls") and (message.get("content") or "").strip():
            bare = {key: value for key, value in message.items() if key != "tool_calls"}
            made += [bare, {**message, "content": ""}]
        else:
            made.append(message)
    return made


def _one_of_a_role(messages: Dicts) -> Dicts:
    """Neighbours of one role as one message; answers with calls and results stay."""
    made: Dicts = []
    for message in messages:
        alike = made and made[-1]["role"] == message["role"] != "tool"
        if alike and not made[-1].get("tool_calls"):
            before = made.pop()
            joined = _joined([before.get("content"), message.get("content")])
            message = {**before, **message, "content": joined}
        made.append(message)
    return made


def _nothing_empty(messages: Dicts) -> Dicts:
    """Messages that say nothing are left out, but for results and the only one."""
    kept = [
        message
        for message in messages
        if message["role"] == "tool"
        or message.get("tool_calls")
        or (message.get("content") or "").strip()
    ]
    return kept or messages


def _joined(texts: Any) -> str:
    return "\n\n".join(text for text in texts if text)


_BEFORE_TOOLS: dict[Mend, Callable[[Dicts], Dicts]] = {
    Mend.NOTHING_EMPTY: _nothing_empty,
    Mend.CALLS_AS_TEXT: plain_turns,
    Mend.TEXT_BESIDE: _text_beside,
    Mend.LATER_IN_USER: _later_in_user,
}
_BEHIND_TOOLS: dict[Mend, Callable[[Dicts], Dicts]] = {
    Mend.SYSTEM_IN_USER: _system_in_user,
    Mend.ONE_OF_A_ROLE: _one_of_a_role,
    Mend.CALLS_ALONE: _calls_alone,
    Mend.PARTS: _in_parts,
}
# In the order in which they are tried, with what must be there for them to help.
_HELPS = {
    Mend.PARTS: Feature.WORDS,
    Mend.SYSTEM_IN_USER: Feature.SYSTEM,
    Mend.CALLS_ALONE: Feature.CALLS,
    Mend.TEXT_BESIDE: Feature.BESIDE,
    Mend.CALLS_AS_TEXT: Feature.CALLS,
    Mend.TOOLS_IN_SYSTEM: Feature.TOOLS,
    Mend.TOOLS_IN_USER: Feature.TOOLS,
    Mend.LATER_IN_USER: Feature.LATER,
    Mend.ONE_OF_A_ROLE: Feature.WORDS,
    Mend.NOTHING_EMPTY: Feature.WORDS,
}
