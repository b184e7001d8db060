"""Detokenizer: an answer's ids to text as they come, each character once and exactly.

Where tokens stand for bytes, their bytes are joined and decoded. Other tokenizers (WordPiece, and
those with rules of their own) decode the last few ids again with each new one, and show what the
new one added.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, Protocol

from .token_bytes import TokenBytes, token_bytes

# An incomplete character decodes to U+FFFD; no character takes more tokens than it has bytes.
_LONGEST_WAIT = 4


class Detokenizer(Protocol):
    """Turns one answer's ids into text."""

    def add(self, token: int) -> str:
        """The text that a token completes; empty while a character is incomplete."""

    def finish(self) -> str:
        """The text of what is still incomplete at the end, as U+FFFD."""


class TextDecoder:
    """Decodes ids of one tokenizer; makes a detokenizer for each answer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._table = token_bytes(tokenizer)

    def detokenizer(self, before: Sequence[int] = ()) -> Detokenizer:
        """A detokenizer at the start of an answer, or of its rest behind the ids `before`."""
        if self._table is not None:
            return _ByBytes(self._table, inside=bool(before))
        return _ByText(self._tokenizer, before[-_LONGEST_WAIT:])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        detokenizer = self.detokenizer()
        return "".join(map(detokenizer.add, ids)) + detokenizer.finish()

    def text_of(self, token: int) -> str:
        """The text of one token inside a text."""
        return self.bytes_of(token).decode("utf-8", "replace")

    def bytes_of(self, token: int) -> bytes:
        """The bytes of one token inside a text: perhaps half a character."""
        if self._table is None:
            return _plain(self._tokenizer, [token]).encode("utf-8", "replace")
        return self._table[token]

    def ids_of_start(
        self, ids: Sequence[int], text: str, before: Sequence[int] = ()
    ) -> Sequence[int] | None:
        """The first of `ids` that spell `text`; None if one of them crosses its end."""
        detokenizer, said, count = self.detokenizer(before), "", 0
        while count < len(ids) and len(said) < len(text):
            said += detokenizer.add(ids[count])
            count += 1
        return ids[:count] if said == text else None


class _ByBytes:
    def __init__(self, table: TokenBytes, *, inside: bool) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._trim = "" if inside else table.rules.trims

    def add(self, token: int) -> str:
        data = self._table[token]
        if not self._decoder.getstate()[0] and _is_inside(data):
            # Some add "½", which is the name of a byte: alone it can only be meant as such.
            data = self._table.name(token) or data
        return self._trimmed(self._decoder.decode(data))

    def finish(self) -> str:
        return self._trimmed(self._decoder.decode(b"", final=True))

    def _trimmed(self, text: str) -> str:
        """Drop a text's very first character if the tokenizer had put it there."""
        if self._trim and text:
            text, self._trim = text.removeprefix(self._trim), ""
        return text


class _ByText:
    def __init__(self, tokenizer: Any, before: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._shown: list[int] = list(before)  # ids of the last text that was shown
        self._waiting: list[int] = []

    def add(self, token: int) -> str:
        self._waiting.append(token)
        return self._next(final=len(self._waiting) >= _LONGEST_WAIT)

    def finish(self) -> str:
        return self._next(final=True) if self._waiting else ""

    def _next(self, *, final: bool) -> str:
        before = _plain(self._tokenizer, self._shown)
        both = _plain(self._tokenizer, [*self._shown, *self._waiting])
        if not final and both.endswith("\ufffd"):
            return ""
        self._shown, self._waiting = self._waiting, []
        return both[len(before) :]


def _is_inside(data: bytes) -> bool:
    """True if these bytes can only continue a character that began before."""
    return data[:1] != b"" and 0x80 <= data[0] < 0xC0


def _plain(tokenizer: Any, ids: Sequence[int]) -> str:
    """The tokenizer's own text of ids, without ids that are no token's."""
    known = [token for token in ids if 0 <= token < len(tokenizer)]
    text = tokenizer.decode(known, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(text)
