"""Arguments inside brackets: `(key="value", other=3)` or `{key:<|"|>value<|"|>,other:3}`."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from .arguments import fitted, kinds_of, literal, property_schema, value_of
from .forms import Strings, Tags
from .text_source import Steps, TextSource

_KEY = re.compile(r"[^\s=:(){}\[\],\"'<>|]{1,256}")
_BARE = re.compile(r"[^,(){}\[\]\n\"'<]{0,4096}")
_PAIRS = {"(": ")", "{": "}", "[": "]"}
_WORDS = tuple("abcdefghijklmnopqrstuvwxyz0123456789")
_DEEPEST = 32
_MOST = 4096


class InlineArguments:
    """Reads arguments and the bracket that closes them; values by quotes, or by the schema."""

    def __init__(self, source: TextSource, tags: Tags, schema: Mapping[str, Any]) -> None:
        self._source, self._tags, self._schema = source, tags, schema
        own = tags.string_middle.removeprefix(tags.middle)
        # The form's own quotes first: `<|"|>`, or plain ones.
        self._quotes = [quote for quote in dict.fromkeys([own, '"', "'"]) if quote]
        self._unquoted = not own

    def read(self) -> Steps[dict[str, Any] | None]:
        """The arguments; None if they never end, or are none."""
        source = self._source
        # The bracket may have been taken as part of the head.
        opened = source.text[source.at - 1 : source.at]
        closer = _PAIRS.get(opened, "")
        if opened not in ("(", "{"):
            yield from source.space()
            closer = _PAIRS.get((yield from source.peek()), "")
            if not closer or closer == "]":
                return None
            source.at += 1
        return (yield from self._pairs(closer, self._schema, 0))

    def _pairs(self, closer: str, schema: Any, depth: int) -> Steps[dict[str, Any] | None]:
        source = self._source
        found: dict[str, Any] = {}
        for _ in range(_MOST):
            while (yield from source.take(",")):
                pass
            if (yield from source.take(closer)):
                return found
            yield from source.space()
            key = yield from self._key()
            if not key or not ((yield from source.take("=")) or (yield from source.take(":"))):
                return None
            inner = property_schema(schema, key) if isinstance(schema, Mapping) else {}
            try:
                found[key] = yield from self._value(closer, inner, depth)
            except ValueError:
                return None
        return None

    def _key(self) -> Steps[str]:
        source = self._source
        for quote in self._quotes:
            if (yield from source.exactly(quote)):
                at = yield from source.find(quote, source.at)
                if at < 0 or at - source.at > 256:
                    return ""
                key = source.text[source.at : at]
                source.at = at + len(quote)
                return key
        return (yield from source.match(_KEY, 256))

    def _value(self, closer: str, schema: Any, depth: int) -> Steps[Any]:
        """One value; ValueError if it has no end, or is nested too deep."""
        source = self._source
        if depth > _DEEPEST:
            raise ValueError("nested too deep")
        if self._unquoted and depth == 0 and kinds_of(schema) == {"string"}:
            quoted = yield from self._in_quotes(closer)
            return (yield from self._raw(closer)) if quoted is None else quoted
        yield from source.space()
        for quote in self._quotes:
            if (yield from source.exactly(quote)):
                return fitted((yield from self._string(quote, closer, depth)), schema)
        opened = yield from source.peek()
        if opened == "{":
            source.at += 1
            pairs = yield from self._pairs("}", schema, depth + 1)
            if pairs is None:
                raise ValueError("an object has no end")
            return pairs
        if opened == "[":
            source.at += 1
            return (yield from self._items(schema, depth + 1))
        text = yield from self._bare(closer, depth)
        try:
            value = literal(text)
        except ValueError:
            return value_of(text, schema)
        if isinstance(value, str) or kinds_of(schema) == {"string"}:
            return text
        return value

    def _items(self, schema: Any, depth: int) -> Steps[list[Any]]:
        source = self._source
        inner = schema.get("items", {}) if isinstance(schema, Mapping) else {}
        found: list[Any] = []
        for _ in range(_MOST):
            while (yield from source.take(",")):
                pass
            if (yield from source.take("]")):
                return found
            found.append((yield from self._value("]", inner, depth)))
        raise ValueError("a list has no end")

    def _string(self, quote: str, closer: str, depth: int) -> Steps[str]:
        """The string up to the quote behind which the arguments go on: models forget escapes."""
        source, start = self._source, self._source.at
        escapes, plain, at = self._escapes(quote), -1, start
        while (at := (yield from source.find(quote, at))) >= 0:
            if escapes and _escaped(source.text, start, at):
                at += 1
                continue
            plain = at if plain < 0 else plain
            source.at = at + len(quote)
            if (yield from self._goes_on(closer, depth)):
                return _decoded(source.text[start:at], quote, self._tags.strings)
            at += 1
        if plain < 0 or source.cut:
            raise ValueError("a string has no end")
        source.at = plain + len(quote)
        return _decoded(source.text[start:plain], quote, self._tags.strings)

    def _in_quotes(self, closer: str) -> Steps[str | None]:
        """A string in Python's quotes, in a form without quotes; None if it is none.

        Templates that write no quotes tell models to write a list of calls, and these do quote.
        """
        source, start = self._source, self._source.at
        quote = yield from source.peek()
        at = start + 1
        while quote in "\"'" and (at := (yield from source.find(quote, at))) >= 0:
            source.at = at + 1
            if not _escaped(source.text, start, at) and (yield from self._goes_on(closer, 0)):
                return _decoded(source.text[start + 1 : at], quote, Strings.PYTHON)
            at += 1
        source.at = start
        return None

    def _escapes(self, quote: str) -> bool:
        return len(quote) == 1

    def _goes_on(self, closer: str, depth: int) -> Steps[bool]:
        """True if a key, the closing bracket or the end stands at the place."""
        source, start = self._source, self._source.at
        try:
            if (yield from source.take(closer)):
                return depth > 0 or (yield from self._closes())
            comma = yield from source.take(",")
            if comma and (closer == "]" or depth > 0):
                return True
            if depth > 0 and (yield from source.take(":")):
                return True
            yield from source.space()
            if source.at == len(source.text):
                return True
            if not comma and self._tags.between.strip():
                return False
            key = yield from self._key()
            return bool(key) and ((yield from source.take("=")) or (yield from source.take(":")))
        finally:
            source.at = start

    def _closes(self) -> Steps[bool]:
        """True if the text behind a closing bracket may stand behind a call."""
        yield from self._source.space()
        return (yield from self._source.peek()) not in "\"'"

    def _raw(self, closer: str) -> Steps[str]:
        """A string without quotes, up to the next known key or the last closing bracket."""
        source, start = self._source, self._source.at
        keys = self._schema.get("properties")
        known = list(keys) if isinstance(keys, Mapping) else []
        nexts = [f"{self._tags.between}{key}{self._tags.middle}" for key in known]
        while True:
            starts = [at for one in nexts if (at := source.text.find(one, start)) >= 0]
            last = source.text.find(closer, start)
            while last >= 0 and source.text[last + 1 : last + 2] in ('"', "'", *_WORDS):
                last = source.text.find(closer, last + 1)
            starts += [last] if last >= 0 else []
            if starts and (source.closed or min(starts) + 256 < len(source.text)):
                source.at = min(starts)
                return source.text[start : source.at]
            if source.closed:
                raise ValueError("a value has no end")
            yield

    def _bare(self, closer: str, depth: int) -> Steps[str]:
        """A value without quotes, up to where the arguments go on."""
        source, start = self._source, self._source.at
        for _ in range(_MOST):
            yield from source.match(_BARE, 4096)
            end = source.at
            if not (yield from source.need(1)):
                break
            if (yield from self._goes_on(closer, depth)):
                return source.text[start:end].strip()
            source.at = end + 1
        source.at = start
        raise ValueError("a value has no end")


def _escaped(text: str, start: int, at: int) -> bool:
    count = 0
    while at - count - 1 >= start and text[at - count - 1] == "\\":
        count += 1
    return count % 2 == 1


def _decoded(text: str, quote: str, strings: Strings) -> str:
    """The text between quotes, with escapes read if the form has them, or must have."""
    if len(quote) > 1 or "\\" not in text:
        return text
    if strings is Strings.RAW and f"\\{quote}" not in text:
        return text
    if strings is Strings.PYTHON or quote == "'":
        try:
            return str(ast.literal_eval(f"{quote}{_lines(text)}{quote}"))
        except (ValueError, SyntaxError, MemoryError):
            return text
    try:
        return str(json.loads(f'"{text}"', strict=False))
    except ValueError:
        return text.replace(f"\\{quote}", quote)


def _lines(text: str) -> str:
    return text.replace("\n", "\\n").replace("\r", "\\r").replace("\0", "\\0")
