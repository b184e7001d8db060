"""Messages -> token ids and boundaries, with generated answers replayed token by token.

Everything is found by rendering the model's own template: a place is where two renderings
part, never a string looked for. What a probe can't find out is left out; only the template's
refusal of the real conversation is an error.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from .messages import Generated, Message

Tier = Literal["system", "user", "assistant"]

_PERSISTENCE: dict[Tier, int] = {"system": 0, "user": 1, "assistant": 2}
# They differ from the first character on, and in length.
_PROBES = ("Question?", "Another one.")
_SPACE = re.compile(r"\s*")
_MAX_REASON = 200
_MAX_ROLES = 12


class ChatTokenizer(Protocol):
    """What this room needs of a tokenizer and its chat template."""

    stop_ids: frozenset[int]

    def apply(
        self, messages: list[dict[str, Any]], *, add_generation_prompt: bool, **arguments: Any
    ) -> str:
        """The template's text of `messages`; raises what the template raises."""

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Ids of `text` with nothing added, and the character where each one ends."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens included."""


class Boundary(NamedTuple):
    """A place where a message ends: the number of tokens before it, and its tier."""

    position: int
    tier: Tier


class Transcript(NamedTuple):
    """A conversation as the model reads it; `replayed` counts the answers kept by their ids."""

    ids: array[int]
    boundaries: tuple[Boundary, ...]
    replayed: int

    def __repr__(self) -> str:
        # Tokens are text to whoever has the tokenizer, so they are not shown.
        return f"Transcript({len(self.ids)} ids, {self.boundaries}, replayed={self.replayed})"


class TemplateError(ValueError):
    """The chat template refused the conversation itself."""


class _Replay(NamedTuple):
    """Characters [start, end) of the rendering that `ids` take the place of.

    `stop` is where the text of the stop token starts; `end` where the answer has none.
    """

    start: int
    stop: int
    end: int
    ids: tuple[int, ...]


def render(
    messages: Sequence[Message],
    tokenizer: ChatTokenizer,
    *,
    fingerprint: str,
    template_arguments: Mapping[str, Any] | None = None,
) -> Transcript:
    """The ids that `messages` ask an answer with; TemplateError where the template refuses."""
    rendering = _Rendering(messages, tokenizer, template_arguments or {})
    replays = _find_replays(rendering, messages, fingerprint)
    ids, ends = _tokenize(rendering.text, tokenizer, replays.values())
    return Transcript(ids, _boundaries(rendering, messages, replays, ends), len(replays))


class _Rendering:
    """The text of a conversation, and how other renderings relate to it."""

    def __init__(
        self, messages: Sequence[Message], tokenizer: ChatTokenizer, arguments: Mapping[str, Any]
    ) -> None:
        self.tokenizer = tokenizer
        self._arguments = arguments
        self._messages = [message.to_template() for message in messages]
        try:
            self.text = self._apply(self._messages, True)
        except Exception as error:
            # `from None`: a template's traceback can show the conversation.
            raise TemplateError(_refusal(error, messages)) from None
        self._sentinel = _sentinel(self.text, messages)

    def shared(self, count: int) -> int:
        """How many characters the first `count` messages alone share with the whole text."""
        return self._common(self._probe(self._messages[:count], False))

    def shared_system(self, count: int) -> int:
        """How many characters don't depend on what follows the first `count` messages."""
        head = self._messages[:count]
        texts = [
            self._probe([*head, {"role": "user", "content": content}], True) for content in _PROBES
        ]
        if texts[0] is None or texts[1] is None:
            return 0
        return self._common(texts[0][: _common_prefix(texts[0], texts[1])])

    def prompt_end(self, index: int) -> int | None:
        """Where the prompt for the answer at `index` ends; None if it isn't in this text."""
        prompt = self._probe(self._messages[:index], True)
        return len(prompt) if prompt is not None and self.text.startswith(prompt) else None

    def place(self, index: int) -> tuple[int, int] | None:
        """Where the content of message `index` stands; None where it is not shown as it is."""
        changed = list(self._messages)
        changed[index] = {**changed[index], "content": self._sentinel}
        before, found, after = (self._probe(changed, True) or "").partition(self._sentinel)
        start, end = len(before), len(self.text) - len(after)
        if not found or start > end:
            return None
        # A second sentinel would be in `after`, so it is refused here too.
        if not (self.text.startswith(before) and self.text.endswith(after)):
            return None
        # Templates trim; what else they do to an answer (thinking dropped) is theirs to decide.
        unchanged = self.text[start:end].strip() == self._messages[index]["content"].strip()
        return (start, end) if unchanged else None

    def _common(self, text: str | None) -> int:
        return 0 if text is None else _common_prefix(text, self.text)

    def _probe(self, messages: list[dict[str, Any]], prompt: bool) -> str | None:
        """A rendering that no one asked for, so a template may refuse it: None."""
        try:
            return self._apply(messages, prompt)
        except Exception:
            return None

    def _apply(self, messages: list[dict[str, Any]], prompt: bool) -> str:
        return self.tokenizer.apply(messages, add_generation_prompt=prompt, **self._arguments)


def _find_replays(
    rendering: _Rendering, messages: Sequence[Message], fingerprint: str
) -> dict[int, _Replay]:
    """For each message that is replayed, by its index: where, and with which ids."""
    found: dict[int, _Replay] = {}
    end = 0
    for index, message in enumerate(messages):
        generated = message.generated
        if message.role != "assistant" or generated is None or not generated.ids:
            continue
        if not generated.matches(message.content, fingerprint):
            continue
        replay = _replay(rendering, index, generated)
        if replay is not None and replay.start >= end:
            found[index] = replay
            end = replay.end
    return found


def _replay(rendering: _Rendering, index: int, generated: Generated) -> _Replay | None:
    """How to replay an unchanged answer; None where the template shows it in another way."""
    start = rendering.prompt_end(index)
    place = None if start is None else rendering.place(index)
    if start is None or place is None:
        return None
    text, (shown, end) = rendering.text, place
    # White space that a template puts round an answer was generated or trimmed, not said.
    if shown < start or text[start:shown].strip():
        return None
    last = generated.ids[-1]
    if last not in rendering.tokenizer.stop_ids:
        return _Replay(start, end, end, generated.ids)
    stop_text = rendering.tokenizer.decode([last])
    space = _SPACE.match(text, end)
    for stop in (end, space.end() if space else end):
        if stop_text and text.startswith(stop_text, stop):
            return _Replay(start, stop, stop + len(stop_text), generated.ids)
    return None


def _tokenize(
    text: str, tokenizer: ChatTokenizer, replays: Iterable[_Replay]
) -> tuple[array[int], list[int]]:
    """Ids of `text` with the replays in their places, and the character where each one ends."""
    ids: array[int] = array("I")
    ends: list[int] = []
    before: _Replay | None = None
    for replay in [*replays, None]:
        until = len(text) if replay is None else replay.start
        more, more_ends = _encode_after(before, text, until, tokenizer)
        ids.extend(more)
        ends.extend(more_ends)
        if replay is not None:
            ids.extend(replay.ids)
            # No message ends inside an answer: all its tokens end where it does.
            ends.extend([replay.end] * len(replay.ids))
        before = replay
    return ids, ends


def _encode_after(
    before: _Replay | None, text: str, until: int, tokenizer: ChatTokenizer
) -> tuple[list[int], list[int]]:
    """Encode the text from a replay's end to `until`; ends are characters of the whole text."""
    start = 0 if before is None else before.end
    if before is not None and before.stop < start:
        # Behind its stop token, as in the whole text: tokenizers treat the start of a text
        # differently, and some special tokens swallow the white space that follows.
        ids, ends = tokenizer.encode(text[before.stop : until])
        if ids and ids[0] == before.ids[-1]:
            return ids[1:], [end + before.stop for end in ends[1:]]
    ids, ends = tokenizer.encode(text[start:until])
    return ids, [end + start for end in ends] if start else ends


def _boundaries(
    rendering: _Rendering,
    messages: Sequence[Message],
    replays: Mapping[int, _Replay],
    ends: list[int],
) -> tuple[Boundary, ...]:
    """Boundaries in order; where two fall together, the more persistent tier stands."""
    tiers: dict[int, Tier] = {}
    for character, tier in _marks(rendering, messages, replays):
        position = bisect_right(ends, character)
        held = tiers.get(position, tier)
        tiers[position] = min(tier, held, key=_PERSISTENCE.__getitem__)
    inside = sorted(position for position in tiers if 0 < position < len(ends))
    return tuple(Boundary(position, tiers[position]) for position in inside)


def _marks(
    rendering: _Rendering, messages: Sequence[Message], replays: Mapping[int, _Replay]
) -> Iterator[tuple[int, Tier]]:
    """The character where each message ends, with its tier."""
    roles = [message.role for message in messages]
    leading = next((at for at, role in enumerate(roles) if not _is_system(role)), len(roles))
    yield rendering.shared_system(leading), "system"
    for index in range(leading, len(messages)):
        if index in replays:
            yield replays[index].end, "assistant"
        else:
            tier: Tier = "assistant" if roles[index] == "assistant" else "user"
            yield rendering.shared(index + 1), tier


def _is_system(role: str) -> bool:
    return role in ("system", "developer")


def _common_prefix(a: str, b: str) -> int:
    """How many characters `a` and `b` share from their starts, by halving."""
    low, high = 0, min(len(a), len(b))
    if a.startswith(b) or b.startswith(a):
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _sentinel(text: str, messages: Sequence[Message]) -> str:
    """A word that stands nowhere in the conversation, and that no filter changes."""
    number = 0
    while True:
        word = f"answer{number}x"
        if word not in text and not any(word in message.content for message in messages):
            return word
        number += 1


def _refusal(error: Exception, messages: Sequence[Message]) -> str:
    """One line with the template's own reason and the roles, without the conversation's text."""
    reason = str(error)
    for message in messages:
        if len(message.content) > 3:
            reason = reason.replace(message.content, "...")
    reason = " ".join(reason.split()) or type(error).__name__
    if len(reason) > _MAX_REASON:
        reason = reason[:_MAX_REASON] + "..."
    roles = [message.role for message in messages]
    listed = ", ".join(roles if len(roles) <= _MAX_ROLES else ["...", *roles[-_MAX_ROLES:]])
    return (
        f"the model's chat template refused the messages (roles: {listed}): {reason};"
        " send roles and an order that it takes, or use another model"
    )
