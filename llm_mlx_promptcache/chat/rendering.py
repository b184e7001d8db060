"""Messages -> token ids and boundaries, with generated answers replayed token by token.

Everything is found by rendering the model's own template (`rendered_text.py`, `replay.py`).
Anything a probe can't find is left out; only the template's refusal of the real conversation is an
error.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import accumulate
from typing import Any, NamedTuple

from .checks import check_json
from .messages import Generated, Message
from .rendered_text import ChatTokenizer, Clock, RenderedText
from .replay import Replay, find_replays
from .template_work import TemplateError
from .tool_schemas import canonical_tools
from .transcript import Boundary, Tier, Transcript

__all__ = ["TemplateError", "render", "render_continued"]

_PERSISTENCE: dict[Tier, int] = {"system": 0, "user": 1, "assistant": 2}
_NOW, _ARGUMENTS = "now", "arguments"
# Not the template's own: arguments of rendering, and those of tokenizers.
_RESERVED = frozenset(
    [
        "messages",
        "conversation",
        "tools",
        "strftime_now",
        "add_generation_prompt",
        "continue_final_message",
        "chat_template",
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    ]
)


def render(
    messages: Sequence[Message],
    tokenizer: ChatTokenizer,
    *,
    fingerprint: str,
    tools: Sequence[Mapping[str, Any]] = (),
    template_arguments: Mapping[str, Any] | None = None,
    now: datetime | None = None,
) -> Transcript:
    """The ids of the prompt for `messages`; TemplateError if the template refuses.

    `tools` are in OpenAI's form. Date and template arguments are those of the conversation's latest
    record of ours if it has them; arguments given here override recorded ones.
    """
    given = _given(messages, fingerprint, tools, template_arguments or {})
    return _transcript(messages, tokenizer, fingerprint, given.at(now), continued=False)


def render_continued(
    messages: Sequence[Message],
    tokenizer: ChatTokenizer,
    *,
    fingerprint: str,
    tools: Sequence[Mapping[str, Any]] = (),
    template_arguments: Mapping[str, Any] | None = None,
    now: datetime | None = None,
) -> Transcript:
    """The ids of a prompt that goes on with the last message, an assistant's, from its end."""
    given = _given(messages, fingerprint, tools, template_arguments or {})
    return _transcript(messages, tokenizer, fingerprint, given.at(now), continued=True)


class _Given(NamedTuple):
    """The template's input beside messages: arguments, tools, and the moment."""

    arguments: Mapping[str, Any]
    tools: Sequence[Mapping[str, Any]]
    moment: datetime | None

    def at(self, now: datetime | None) -> _Given:
        """The same input, at this moment unless a record has another one."""
        return self._replace(moment=self.moment or now)


def _given(
    messages: Sequence[Message],
    fingerprint: str,
    tools: Sequence[Mapping[str, Any]],
    arguments: Mapping[str, Any],
) -> _Given:
    for name in sorted(_RESERVED.intersection(arguments)):
        raise ValueError(f"template_arguments has {name!r}, which is not the template's; drop it")
    recorded = _recorded(messages, fingerprint)
    given = {**_arguments(recorded.get(_ARGUMENTS)), **arguments}
    return _Given(given, canonical_tools(tools) if tools else (), _moment(recorded.get(_NOW)))


def _transcript(
    messages: Sequence[Message],
    tokenizer: ChatTokenizer,
    fingerprint: str,
    given: _Given,
    *,
    continued: bool,
) -> Transcript:
    clock = Clock(given.moment or datetime.now())
    arguments: dict[str, Any] = {"strftime_now": clock, **given.arguments}
    if given.tools:
        arguments["tools"] = given.tools
    rendering = RenderedText(messages, tokenizer, arguments, continued=continued)
    replays = find_replays(rendering, messages, fingerprint)
    ids, ends = _tokenize(rendering.text, tokenizer, replays.values())
    marks = list(_marks(rendering, replays, messages))
    boundaries = _boundaries(marks, ends)
    kept = _keep(clock, given.arguments)
    begun = _begun(rendering, ends) if continued else 0
    message_ends = _message_ends(rendering, marks, ends, replays, messages)
    stays = bisect_right(ends, marks[-1].character)
    return Transcript(
        ids, boundaries, len(replays), kept, rendering.mends, begun, message_ends, stays
    )


def _begun(rendering: RenderedText, ends: list[int]) -> int:
    """The number of last tokens that begin the answer; 0 if one of them is not its alone."""
    start = rendering.prompt_end(len(rendering.turns) - 1)
    if start is None or start not in ends:
        return 0
    return len(ends) - bisect_right(ends, start)


def _recorded(messages: Sequence[Message], fingerprint: str) -> Mapping[str, Any]:
    """The latest rendering record of the same model's answers, edited since or not."""
    for message in reversed(messages):
        generated: Generated | None = message.generated
        if generated is not None and generated.fingerprint == fingerprint and generated.rendered:
            return generated.rendered
    return {}


def _arguments(value: object) -> dict[str, Any]:
    """Recorded template arguments; a damaged record costs reuse and is no error."""
    if not isinstance(value, Mapping):
        return {}
    return {key: inner for key, inner in value.items() if key not in _RESERVED}


def _moment(value: object) -> datetime | None:
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _keep(clock: Clock, given: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data for the answer's record: the date if a template asked, and the arguments."""
    kept: dict[str, Any] = {}
    if clock.asked:
        kept[_NOW] = clock.moment.isoformat(timespec="seconds")
    plain = {key: value for key, value in given.items() if _survives(value)}
    return {**kept, _ARGUMENTS: plain} if plain else kept


def _survives(value: object) -> bool:
    try:
        check_json("template_arguments", value)
    except ValueError:
        return False
    return True


def _tokenize(
    text: str, tokenizer: ChatTokenizer, replays: Iterable[Replay]
) -> tuple[array[int], list[int]]:
    """Ids of `text` with the replays in their places, and the character where each one ends."""
    ids: array[int] = array("I")
    ends: list[int] = []
    before: Replay | None = None
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
    before: Replay | None, text: str, until: int, tokenizer: ChatTokenizer
) -> tuple[list[int], list[int]]:
    """Encode the text from a replay's end to `until`; ends count characters of the whole text."""
    start = 0 if before is None else before.end
    if before is not None and before.stop < start:
        # Behind its stop token, as in the whole text: tokenizers treat the start of a text
        # differently, and some special tokens swallow the white space that follows.
        ids, ends = tokenizer.encode(text[before.stop : until])
        if ids and ids[0] == before.ids[-1]:
            return ids[1:], [end + before.stop for end in ends[1:]]
    ids, ends = tokenizer.encode(text[start:until])
    return ids, [end + start for end in ends] if start else ends


class _Mark(NamedTuple):
    """A character where something ends, with its tier: these turns, or only a part of one."""

    character: int
    tier: Tier
    turns: range = range(0)


def _boundaries(marks: Iterable[_Mark], ends: list[int]) -> tuple[Boundary, ...]:
    """Boundaries in order; of two at one place the more persistent tier stays."""
    tiers: dict[int, Tier] = {}
    for character, tier, _ in marks:
        position = bisect_right(ends, character)
        held = tiers.get(position, tier)
        tiers[position] = min(tier, held, key=_PERSISTENCE.__getitem__)
    inside = sorted(position for position in tiers if 0 < position < len(ends))
    return tuple(Boundary(position, tiers[position]) for position in inside)


def _message_ends(
    rendering: RenderedText,
    marks: Iterable[_Mark],
    ends: list[int],
    replays: Mapping[int, Replay],
    messages: Sequence[Message],
) -> tuple[int, ...]:
    """For each message the number of tokens up to its end.

    Some templates write the last answer differently when nothing follows it, so an end found
    without a following message is not where an answer of ours ends in this text.
    """
    found = [0] * len(messages)
    for character, _, turns in marks:
        for turn in turns:
            sources = rendering.turns[turn].sources
            recorded = any(_is_recorded(messages[source]) for source in sources)
            if recorded and turn not in replays:
                character = max(character, rendering.end_where_followed(turn))
            for source in sources:
                found[source] = bisect_right(ends, character)
    return tuple(accumulate(found, max))


def _is_recorded(message: Message) -> bool:
    return message.generated is not None and message.generated.asked is not None


def _marks(
    rendering: RenderedText, replays: Mapping[int, Replay], messages: Sequence[Message]
) -> Iterator[_Mark]:
    """The character where each message ends, with its tier, and where a stable part of one does."""
    roles = [turn.message["role"] for turn in rendering.turns]
    leading = next((at for at, role in enumerate(roles) if not _is_system(role)), len(roles))
    before = rendering.shared_system(leading)
    yield _Mark(before, "system", range(leading))
    for index in range(leading, len(roles)):
        if index in replays:
            before = replays[index].end
            yield _Mark(before, "assistant", range(index, index + 1))
            continue
        end = rendering.end_of(index, before)
        message = messages[rendering.turns[index].sources[0]]
        if head := message.content[: max(0, message.stable)].strip():
            at = rendering.text.find(head, before, end)
            yield _Mark(at + len(head) if at >= 0 else 0, "user")
        tier: Tier = "assistant" if roles[index] == "assistant" else "user"
        yield _Mark(end, tier, range(index, index + 1))
        before = max(before, end)
    # Before text that only the prompt for an answer has, and no later prompt (thinking).
    yield _Mark(rendering.shared_later(), "user")


def _is_system(role: str) -> bool:
    return role in ("system", "developer")
