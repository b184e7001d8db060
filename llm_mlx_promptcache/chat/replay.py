"""The places of earlier answers' generated ids in the text that a template renders now."""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from .messages import Message
from .rendered_text import RenderedText, common_prefix, common_suffix
from .template_input import REASONING_KEYS

_SPACE = re.compile(r"\s*")


class Replay(NamedTuple):
    """Characters [start, end) of the rendering, which `ids` replace.

    `stop` is the start of the stop token's text; `end` if the answer has none.
    """

    start: int
    stop: int
    end: int
    ids: tuple[int, ...]


class _GeneratedText(NamedTuple):
    """An answer as it was generated: ids and text without the stop token, and that token."""

    ids: tuple[int, ...]
    text: str
    stop: tuple[int, ...]
    stop_text: str


def find_replays(
    rendering: RenderedText, messages: Sequence[Message], fingerprint: str
) -> dict[int, Replay]:
    """The replays by turn: their places and ids."""
    found: dict[int, Replay] = {}
    end = 0
    for index, turn in enumerate(rendering.turns):
        # Answers that were merged have no known places of their own.
        message = messages[turn.sources[0]]
        if len(turn.sources) > 1 or not message.unchanged(fingerprint):
            continue
        replay = _known(rendering, index, message, end)
        if replay is not None and replay.start >= end:
            found[index] = replay
            end = replay.end
    return found


def _known(rendering: RenderedText, index: int, message: Message, before: int) -> Replay | None:
    """The result of `_find`, or its result in an earlier rendering of the same text."""
    generated = message.generated
    assert generated is not None
    memo, prefixes = rendering.memo, rendering.prefixes
    # The same answer may stand in several places, so the turns before it belong to the key.
    ids = blake2b(array("I", generated.ids).tobytes(), digest_size=16).digest()
    found, missed = ((kind, rendering.keys[index], ids) for kind in ("found", "missed"))
    known = memo.get(found, prefixes)
    if known is not None:
        start, stop, count = known[1]
        return Replay(start, stop, known[0], generated.ids[:count])
    if memo.get(missed, prefixes) is not None:
        return None
    replay = _find(rendering, index, message)
    if replay is None:
        # A later text that shows the answer differently is searched again.
        memo.put(missed, prefixes, rendering.end_of(index, before))
        return None
    memo.put(found, prefixes, replay.end, (replay.start, replay.stop, len(replay.ids)))
    return replay


def _find(rendering: RenderedText, index: int, message: Message) -> Replay | None:
    """The replay of an unchanged answer; None if the template shows it differently."""
    start = rendering.prompt_end(index)
    if start is None:
        return None
    answer = _answer(rendering, message)
    end = _literal_end(rendering.text, start, answer.text)
    if end is not None and (replay := _closed(rendering.text, start, end, answer)):
        return replay
    if message.tool_calls:
        return _replay_calls(rendering, index, message, start, answer)
    return _replay_text(rendering, index, message, start, answer)


def _answer(rendering: RenderedText, message: Message) -> _GeneratedText:
    assert message.generated is not None
    ids, tokenizer = message.generated.ids, rendering.tokenizer
    count = len(ids) - (ids[-1] in tokenizer.stop_ids)
    stop = ids[count:]
    text = tokenizer.decode(ids[:count]) if count else ""
    return _GeneratedText(ids[:count], text, stop, tokenizer.decode(stop) if stop else "")


def _literal_end(text: str, start: int, said: str) -> int | None:
    """The end of the generated text at `start`, word for word; templates trim it."""
    if text.startswith(said, start):
        return start + len(said)
    said = said.strip()
    start = _behind_space(text, start)
    return start + len(said) if text.startswith(said, start) else None


def _closed(text: str, start: int, end: int, answer: _GeneratedText) -> Replay | None:
    """The replay of an answer whose text ends at `end`, with its stop token if it follows."""
    if not answer.stop:
        return Replay(start, end, end, answer.ids)
    for stop in (end, _behind_space(text, end)):
        if answer.stop_text and text.startswith(answer.stop_text, stop):
            ids = answer.ids + answer.stop
            return Replay(start, stop, stop + len(answer.stop_text), ids)
    # The template ends answers in its own way, with another stop token.
    return Replay(start, end, end, answer.ids) if answer.ids else None


def _replay_text(
    rendering: RenderedText, index: int, message: Message, start: int, answer: _GeneratedText
) -> Replay | None:
    """The replay of an answer of words, which the template may show with other spaces."""
    end = start
    for keys in _texts(message):
        extent = rendering.extent(index, keys)
        if extent is None or extent[0] < start:
            return None
        end = max(end, extent[1])
    if _squash(rendering.text[start:end]) != _squash(answer.text):
        return None
    return _closed(rendering.text, start, end, answer)


def _replay_calls(
    rendering: RenderedText, index: int, message: Message, start: int, answer: _GeneratedText
) -> Replay | None:
    """The replay of calls, which may be shown with other spaces or another order of keys."""
    text = rendering.text
    changes, sentinels = _other_arguments(rendering, index)
    other = rendering.with_turn(index, changes)
    if common_prefix(text, other) < start or not all(word in other for word in sentinels):
        return None
    extents = [rendering.extent(index, keys) for keys in _texts(message)]
    if any(extent is None or extent[0] < start for extent in extents):
        return None
    depends = len(text) - common_suffix(text, other)
    tail = text[depends : depends + _own_tail(rendering, index, changes, text[depends:])]
    stop = tail.find(answer.stop_text) if answer.stop_text else -1
    if stop < 0:
        end = depends + _covered(tail, answer.text)
        same = _letters(text[start:end]) == _letters(answer.text)
        return Replay(start, end, end, answer.ids) if same else None
    stop += depends
    same = _letters(text[start:stop]) == _letters(answer.text)
    if not same and _adds_text(rendering, index, start, answer.text):
        return None
    return Replay(start, stop, stop + len(answer.stop_text), answer.ids + answer.stop)


def _other_arguments(rendering: RenderedText, index: int) -> tuple[dict[str, Any], list[str]]:
    """Turn `index` with another word for every argument, and these words."""
    words: list[str] = []
    calls = []
    for number, call in enumerate(rendering.turns[index].message["tool_calls"]):
        arguments = call["function"]["arguments"]
        word = f"{rendering.sentinel}{number}x"
        if isinstance(arguments, Mapping):
            changed: Any = {key: f"{word}{at}x" for at, key in enumerate(arguments)}
            changed = changed or {word: word}
            words += changed.values()
        else:
            changed = f'{{"{word}": "{word}"}}'
            words.append(word)
        calls.append({**call, "function": {**call["function"], "arguments": changed}})
    return {"tool_calls": calls}, words


def _texts(message: Message) -> list[Sequence[str]]:
    """The parts of an answer beside its calls."""
    parts: list[Sequence[str]] = [("content",)] if message.content.strip() else []
    return [*parts, REASONING_KEYS] if message.reasoning.strip() else parts


def _own_tail(rendering: RenderedText, index: int, changes: Mapping[str, Any], tail: str) -> int:
    """The length of `tail`, the text behind the last argument, that is the answer's own turn's."""
    alone = rendering.head(index + 1, prompt=False)
    if alone is None:
        return 0
    other = rendering.with_turn(index, changes, upto=index + 1)
    depends = len(alone) - common_suffix(alone, other)
    return common_prefix(alone[depends:], tail)


def _covered(tail: str, said: str) -> int:
    """The length of `tail` that the generated text ends with: closing marks of calls, no turn's."""
    said = _squash(said)
    lengths = range(len(tail), -1, -1)
    return next(length for length in lengths if said.endswith(_squash(tail[:length])))


def _adds_text(rendering: RenderedText, index: int, start: int, said: str) -> bool:
    """True if the template puts text before any answer here that was not generated."""
    changes = {"content": rendering.sentinel, "tool_calls": []}
    plain = rendering.with_turn(index, changes, upto=index + 1)
    lead = common_prefix(plain[start:], rendering.text[start:])
    return not _squash(said).startswith(_squash(rendering.text[start : start + lead]))


def _behind_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _squash(text: str) -> str:
    """The visible ASCII of `text`, which markup is made of.

    Tokens decoded one by one, as answers are shown, give other text than all at once if bytes are
    no text, and at white space. The words of an answer are compared by its parts.
    """
    return "".join(character for character in text if "!" <= character <= "~")


def _letters(text: str) -> list[str]:
    return sorted(_squash(text))
