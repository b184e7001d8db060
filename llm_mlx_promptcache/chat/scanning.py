"""Small scanners over text that is still coming: marks, JSON strings, the end of a JSON value."""

from __future__ import annotations

import re
from collections.abc import Sequence

_CALL_START = '{"name":"'
_SPACE = re.compile(r"\s+")
# A whole JSON string, or the beginning of one that does not end.
_STRING = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?$)', re.DOTALL)


class Marks:
    """Finds the first of several marks in text that may end inside one."""

    def __init__(self, marks: Sequence[str]) -> None:
        self._marks = [mark for mark in marks if mark]

    def split(self, text: str) -> tuple[str, str | None, str]:
        """Text before the first mark, the mark, and what follows; or None, and what must wait."""
        matches = [(at, -len(mark), mark) for mark in self._marks if (at := text.find(mark)) >= 0]
        if matches:
            at, _, mark = min(matches)
            return text[:at], mark, text[at + len(mark) :]
        kept = self.overlap(text)
        return text[: len(text) - kept], None, text[len(text) - kept :]

    def overlap(self, text: str) -> int:
        """How many of the last characters of `text` may be the beginning of a mark."""
        longest = max((len(mark) for mark in self._marks), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(mark.startswith(text[-size:]) for mark in self._marks):
                return size
        return 0


class JsonValue:
    """Follows one JSON object or list through its pieces, to its last bracket."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False
        self.done = False

    def feed(self, text: str) -> str:
        """The part of `text` that belongs to the value."""
        if self._depth == 0 and not self._in_string:
            text = "" if self.done else text.lstrip()
        for index, character in enumerate(text):
            self._take(character)
            if self.done:
                return text[: index + 1]
        return text

    def _take(self, character: str) -> None:
        if self._in_string:
            self._in_string = self._escaped or character != '"'
            self._escaped = character == "\\" and not self._escaped
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            self.done = self._depth == 0


def outside_strings(text: str, mark: str, start: int = 0) -> int:
    """Where `mark` stands in `text` from `start` on and outside of JSON strings, or -1."""
    if text.find(mark, start) < 0:
        return -1
    at = 0
    while (found := text.find(mark, at)) >= 0:
        string = _STRING.search(text, at)
        if string is None or string.start() > found:
            return found
        at = string.end()
    return -1


def opens_call(text: str) -> bool:
    """Whether `text` begins, or may yet begin, with an object whose first key is `name`."""
    start = _SPACE.sub("", text[:64])
    return start[: len(_CALL_START)] == _CALL_START[: len(start)] and bool(start)
