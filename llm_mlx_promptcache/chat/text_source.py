"""Text that is still coming, read by a coroutine that waits where it needs more."""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]

_STRUCTURE = re.compile(r"[\"'\[\]{}]")
_STRING_END = {'"': re.compile(r'[\\"]'), "'": re.compile(r"[\\']")}


class TextSource:
    """The text so far and a place in it. Its steps wait (yield) only if text is missing.

    `hungry`: the item at the place has begun, so an end of the text there cuts it.
    """

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.closed = False
        self.cut = False
        self.hungry = False
        self.followed = 0

    def add(self, text: str) -> None:
        """Append new text."""
        self.text += text

    def close(self, *, whole: bool) -> None:
        """End the text; `whole`: it ended by itself."""
        self.closed, self.cut = True, not whole

    def need(self, size: int) -> Steps[bool]:
        """Wait until `size` characters stand behind the place; False if there are fewer."""
        while len(self.text) - self.at < size:
            if self.closed:
                return False
            yield
        return True

    def peek(self) -> Steps[str]:
        """The character at the place; a line end if there is none (which opens nothing)."""
        return self.text[self.at] if (yield from self.need(1)) else "\n"

    def space(self) -> Steps[None]:
        """Pass white space."""
        while True:
            while self.at < len(self.text) and self.text[self.at].isspace():
                self.at += 1
            if self.at < len(self.text) or self.closed:
                return
            yield

    def exactly(self, literal: str) -> Steps[bool]:
        """Pass `literal` if it stands at the place, to the character."""
        for size, character in enumerate(literal):
            if not (yield from self.need(size + 1)) or self.text[self.at + size] != character:
                return False
        self.at += len(literal)
        return True

    def take(self, mark: str) -> Steps[bool]:
        """Pass white space and `mark`, or nothing."""
        start = self.at
        yield from self.space()
        if (yield from self.exactly(mark)):
            return True
        self.at = start
        return False

    def stands(self, mark: str) -> Steps[bool]:
        """True if `mark` stands at the place, behind white space."""
        start = self.at
        stands = yield from self.take(mark)
        self.at = start
        return stands

    def find(self, mark: str, start: int) -> Steps[int]:
        """The place of `mark` from `start` on, or -1 if it never comes."""
        while True:
            at = self.text.find(mark, start)
            if at >= 0:
                return at
            if self.closed:
                return -1
            start = max(start, len(self.text) - len(mark) + 1)
            yield

    def match(self, pattern: re.Pattern[str], longest: int) -> Steps[str]:
        """Pass and return the match of `pattern` at the place, of up to `longest` characters."""
        while True:
            matched = pattern.match(self.text, self.at, self.at + longest)
            end = self.at if matched is None else matched.end()
            if end < len(self.text) or self.closed or end - self.at >= longest:
                break
            yield
        text = self.text[self.at : end]
        self.at = end
        return text

    def quoted(self) -> Steps[str]:
        """Pass the rest of a JSON string, up to its quote; returns its value."""
        start = at = self.at
        while (end := _quote_end(self.text, at)) < 0 and not self.closed:
            yield
        self.at = len(self.text) if end < 0 else end - 1
        text = self.text[start : self.at]
        try:
            return str(json.loads(f'"{text}"'))
        except ValueError:
            return text

    def string(self) -> Steps[str]:
        """Pass a JSON string, its quotes too; returns its value."""
        self.at += 1
        text = yield from self.quoted()
        self.at = min(self.at + 1, len(self.text))
        return text

    def value(self) -> Steps[str | None]:
        """Pass a JSON object or list; returns its text, or None if it never ends.

        Strings in single quotes, as Python writes them, are passed too. Meanwhile `followed` is the
        end of the text known to be the value's.
        """
        start, depth, at, quote = self.at, 0, self.at, ""
        while True:
            sign = (_STRING_END[quote] if quote else _STRUCTURE).search(self.text, at)
            if sign is not None and sign[0] == "\\" and sign.end() == len(self.text):
                at, sign = sign.start(), None  # the escaped character has not come yet
            elif sign is None:
                at = len(self.text)
            if sign is None:
                self.followed = len(self.text)
                if self.closed:
                    return None
                yield
                continue
            at = sign.end() + (sign[0] == "\\")
            if quote:
                quote = quote if sign[0] == "\\" else ""
            elif sign[0] == '"' or (sign[0] == "'" and _opens(self.text, sign.start())):
                quote = sign[0]
            elif sign[0] != "'":
                depth += 1 if sign[0] in "[{" else -1
                if depth == 0:
                    self.at = self.followed = at
                    return self.text[start:at]


def _quote_end(text: str, at: int) -> int:
    """The place behind the quote that ends the JSON string around `at`; -1 if there is none."""
    while (sign := _STRING_END['"'].search(text, at)) is not None and sign[0] == "\\":
        at = sign.end() + 1
    return -1 if sign is None else sign.end()


def _opens(text: str, at: int) -> bool:
    """True if the single quote at `at` begins a string: not one inside a word."""
    return text[max(0, at - 64) : at].rstrip()[-1:] in ("{", "[", ",", ":", "(")
