"""Arguments between marks of their own: `<parameter=key>` value `</parameter>`."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from .arguments import json_value, kinds_of, literal, property_schema, value_of
from .forms import KEY, Strings, Tags, marks_in
from .text_source import Steps, TextSource

_LONGEST_KEY = 256
_MOST = 1024


class TagArguments:
    """Reads arguments to the mark that closes the call; `ends` are marks that may follow them."""

    def __init__(
        self, source: TextSource, tags: Tags, schema: Mapping[str, Any], ends: Sequence[str]
    ) -> None:
        self._source, self._tags, self._schema = source, tags, schema
        self._opening = tags.opening.strip()
        self._ends = [end for end in ends if end]
        self._split = key_end(tags)

    def read(self) -> Steps[dict[str, Any] | None]:
        """The arguments; None if one has no end."""
        found: dict[str, Any] = {}
        for _ in range(_MOST):
            yield from self._source.take(self._tags.between.strip() or "\0")
            if not (yield from self._source.take(self._opening)):
                break
            key = yield from self._key()
            if key is None or not (yield from self._value(key, found)):
                return None
        return found

    def _key(self) -> Steps[str | None]:
        source, start = self._source, self._source.at
        at = yield from source.find(self._split, start)
        if at < 0 or at - start > _LONGEST_KEY:
            return None
        source.at = at
        return source.text[start:at].strip()

    def _value(self, key: str, found: dict[str, Any]) -> Steps[bool]:
        source, tags = self._source, self._tags
        schema = property_schema(self._schema, key)
        middles = [(tags.string_middle, tags.string_closing), (tags.middle, tags.closing)]
        # If strings have marks of their own, the marks decide the type.
        told = middles[0] != middles[1]
        is_string: bool | None = None
        for middle, mark in middles:
            closing = mark.replace(KEY, key)
            is_string = (middle, mark) == middles[0] if told else None
            if (yield from source.exactly(middle)):
                text = yield from self._until(closing, exact=True)
                break
            if (yield from source.take(middle.strip())):
                text = yield from self._until(closing, exact=False)
                break
        else:
            return False
        if text is None:
            return False
        found[key] = self._read(text, schema, is_string=is_string)
        return True

    def _until(self, closing: str, *, exact: bool) -> Steps[str | None]:
        """The text up to the closing mark behind which a call goes on, or ends."""
        source, start = self._source, self._source.at
        bare = closing.strip()
        for mark in [closing.rstrip(), bare] if exact and closing.rstrip() != bare else [bare]:
            at = start
            while (at := (yield from source.find(mark, at))) >= 0:
                source.at = at + len(mark)
                if (yield from self._goes_on()):
                    return source.text[start:at] if exact else _trimmed(source.text[start:at])
                at += 1
        source.at = start
        if source.cut:
            return None
        # Its mark was left out: it ends where the next one begins.
        ends = [
            at
            for mark in (self._opening, *self._ends)
            if (at := source.text.find(mark, start)) >= 0
        ]
        if not ends:
            return None
        source.at = min(ends)
        return _trimmed(source.text[start : source.at])

    def _goes_on(self) -> Steps[bool]:
        for mark in (self._opening, self._tags.between.strip(), *self._ends):
            if mark and (yield from self._source.stands(mark)):
                return True
        start = self._source.at
        yield from self._source.space()
        ended = self._source.at == len(self._source.text)
        self._source.at = start
        return ended

    def _read(self, text: str, schema: Any, *, is_string: bool | None) -> Any:
        opened, closed = self._tags.wrap
        if opened and text.startswith(opened) and text.endswith(closed):
            return text[len(opened) : len(text) - len(closed)]
        if is_string:
            return text
        strings = self._tags.strings
        if is_string is False:
            return _literal_or(text, schema)
        if strings is Strings.HTML:
            text = html.unescape(text)
        elif strings in (Strings.JSON, Strings.PYTHON):
            return _quoted(text, schema)
        return value_of(text, schema)


def _literal_or(text: str, schema: Any) -> Any:
    """A value marked as no string; the schema decides if it is no literal."""
    try:
        return literal(text.strip())
    except ValueError:
        return value_of(text, schema)


def _quoted(text: str, schema: Any) -> Any:
    """A value whose strings stand in quotes, or should."""
    stripped = text.strip()
    try:
        value = json_value(stripped) if stripped[:1] == '"' else literal(stripped)
    except ValueError:
        return value_of(text, schema)
    if isinstance(value, str) or "string" not in kinds_of(schema) or kinds_of(schema) != {"string"}:
        return value
    return text


def _trimmed(text: str) -> str:
    """A value whose marks have other white space than the form's: one line end at each side."""
    text = text[1:] if text.startswith("\n") else text
    return text[:-1] if text.endswith("\n") else text


def key_end(tags: Tags) -> str:
    """The end of a key: the mark that its middles have in common."""
    a, b = tags.middle.strip(), tags.string_middle.strip()
    size = next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
    shared = a[:size] or a
    return marks_in(shared)[0] if marks_in(shared) else shared
