"""The prompt put together: parts that a template has no place for are moved, in a fixed order.

The mends (`mends.py`) that a template needs are found by probes when a model is loaded
(`models/probes.py`); each request is checked anew, and gets more of them one at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import combinations
from typing import Any, NamedTuple

from .mends import GENERIC_TOOLS, SYSTEM_ROLES, Dicts, Mend, mended
from .messages import Message
from .shown_words import Lost, lost_words
from .template_input import Turn, turns_of
from .template_work import TooMuchWork

# A template's text of messages with such arguments; raises what the template raises.
Render = Callable[[Dicts, Mapping[str, Any]], str]

# The most mends added to those that the probes found; more would change the conversation.
_MOST_ADDED = 3
# Renderings of a conversation before it is refused; real templates need at most 50.
_MOST_TRIED = 256


class Feature(Enum):
    """A part of a conversation that a template may have no place for."""

    WORDS = "words"
    SYSTEM = "system"
    TOOLS = "tools"
    CALLS = "calls"
    BESIDE = "beside"
    LATER = "later"


@dataclass(frozen=True)
class PromptForm:
    """The mends that a template needs for each feature of a conversation; without any, none.

    `example` is a call as the template itself shows calls: tools that it has no place for are
    described with this form, and calls stay calls. Without it the prompt describes the generic
    form.
    """

    mends: Mapping[Feature, tuple[Mend, ...]]
    example: str = ""

    def start(self, features: Sequence[Feature]) -> frozenset[Mend]:
        """The mends that a conversation with `features` begins with."""
        return frozenset(mend for one in features for mend in self.mends.get(one, ()))

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the facts of a model."""
        mends = {one.value: [mend.value for mend in mends] for one, mends in self.mends.items()}
        return {**mends, _EXAMPLE: self.example} if self.example else mends

    @classmethod
    def from_json(cls, data: object) -> PromptForm | None:
        """Read the output of `to_json`; None for anything else."""
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


class WordsLostError(Exception):
    """The template leaves out some words, in every form that the conversation was put in."""


class _EnoughTried(TooMuchWork):
    """A conversation was put in as many forms as are allowed."""


class _Tries:
    """A template's renderings of one conversation, up to a limit; its first refusal."""

    def __init__(self, render: Render) -> None:
        self._render = render
        self._left = _MOST_TRIED
        self.refusal: Exception | None = None

    def __call__(self, made: Dicts, arguments: Mapping[str, Any]) -> str:
        if self._left == 0:
            raise _EnoughTried
        self._left -= 1
        try:
            return self._render(made, arguments)
        except TooMuchWork:
            raise
        except Exception as error:
            self.refusal = self.refusal or error
            raise


def fit(
    messages: Sequence[Message], arguments: Mapping[str, Any], render: Render, form: PromptForm
) -> Fit:
    """The first form of the conversation in which the template shows every word.

    WordsLostError names the part that no form shows; raises the template's error if no form
    renders.
    """
    features = features_of(messages, tools=bool(arguments.get("tools")))
    refusal: Exception | None = None
    lost: Lost | None = None
    plain = [message.to_template() for message in messages]
    tries = _Tries(render)

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
    render: Render,
    mends: frozenset[Mend],
    example: str,
) -> tuple[Fit, Lost | None]:
    def shown(made: Dicts, tools: Sequence[Mapping[str, Any]] | None) -> str:
        given = {**arguments, "tools": tools} if tools else arguments
        return render(*mended(made, given, mends, example))

    tools = arguments.get("tools")
    turns, text = turns_of(messages, lambda made: shown(made, tools))
    if Mend.PARTS in mends and _prints_parts(messages, text):
        raise ValueError("the template prints parts of content as data")
    return Fit(turns, text, mends), lost_words(turns, text, tools or (), shown)


def _prints_parts(messages: Sequence[Message], text: str) -> bool:
    """True if parts are printed as Python or JSON data; some conversations contain such text."""
    return any(
        text.count(written) > sum(message.content.count(written) for message in messages)
        for written in ("'type': 'text'", '"type": "text"', '"type":"text"')
    )


def features_of(messages: Sequence[Message], *, tools: bool) -> tuple[Feature, ...]:
    """The features of a conversation that templates may have no place for."""
    roles = [message.role for message in messages]
    leading = next((at for at, role in enumerate(roles) if role not in SYSTEM_ROLES), len(roles))
    called = [message for message in messages if message.tool_calls]
    has = {
        Feature.WORDS: True,
        Feature.SYSTEM: leading > 0,
        Feature.TOOLS: tools,
        Feature.CALLS: bool(called) or "tool" in roles,
        Feature.BESIDE: any(message.content.strip() for message in called),
        Feature.LATER: any(role in SYSTEM_ROLES for role in roles[leading:]),
    }
    return tuple(feature for feature, present in has.items() if present)


def _ladder(
    start: frozenset[Mend], features: Sequence[Feature], *, as_text: bool
) -> Iterator[frozenset[Mend]]:
    """The mends that the probes found, then more that may help, as few as possible.

    `as_text`: a prompt that describes the tools describes the generic form, unknown to the
    template.
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
    """The forms that give the template an input none before gave it."""
    first = next(ladder)
    yield first  # most often the last too, so nothing is compared before
    seen = {given(first)}
    for mends in ladder:
        made = given(mends)
        if made not in seen:
            seen.add(made)
            yield mends


def _named(lost: Lost) -> str:
    """The refusal of a conversation: place and part, without its text."""
    where = "tools" if lost.at < 0 else f"messages[{lost.at}] (role {lost.role!r})"
    return (
        f"the model's chat template leaves out {lost.what} of {where}, however it is put; leave it"
        " out, say it in a user message, or use another model"
    )


# In the order in which they are tried, with the feature that each helps.
_HELPS = {
    Mend.PARTS: Feature.WORDS,
    Mend.SYSTEM_IN_USER: Feature.SYSTEM,
    Mend.CALLS_ALONE: Feature.CALLS,
    Mend.TEXT_BESIDE: Feature.BESIDE,
    Mend.ANSWERS_APART: Feature.CALLS,
    Mend.CALLS_AS_TEXT: Feature.CALLS,  # gives up the model's own form
    Mend.TOOLS_IN_SYSTEM: Feature.TOOLS,
    Mend.TOOLS_IN_USER: Feature.TOOLS,
    Mend.LATER_IN_USER: Feature.LATER,
    Mend.ONE_OF_A_ROLE: Feature.WORDS,
    Mend.NOTHING_EMPTY: Feature.WORDS,
}
