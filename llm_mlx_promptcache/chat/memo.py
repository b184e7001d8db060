"""Findings of earlier renderings of growing conversations, kept as digests.

A conversation is rendered anew for each answer, and all but its last turns were rendered before:
findings about text that is the same to the character still hold. No text is kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from hashlib import blake2b
from typing import Any
from weakref import WeakKeyDictionary

_LIMIT = 16384
_SIZE = 16


class Memo:
    """The latest findings for one tokenizer: a key, the place in the text, the finding."""

    def __init__(self) -> None:
        self._found: OrderedDict[Hashable, tuple[int, bytes, Any]] = OrderedDict()

    def get(self, key: Hashable, prefixes: Prefixes) -> tuple[int, Any] | None:
        """Place and finding, if the text up to that place is unchanged."""
        held = self._found.get(key)
        if held is None or prefixes.digest(held[0]) != held[1]:
            return None
        self._found.move_to_end(key)
        return held[0], held[2]

    def put(self, key: Hashable, prefixes: Prefixes, at: int, finding: Any = None) -> None:
        """Keep a finding that holds for the text up to `at`."""
        self._found[key] = (at, prefixes.digest(at), finding)
        self._found.move_to_end(key)
        while len(self._found) > _LIMIT:
            self._found.popitem(last=False)


class Prefixes:
    """Digests of a text's beginnings; cheap if asked for in rising order."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._hash = blake2b(digest_size=_SIZE)

    def digest(self, at: int) -> bytes:
        """The digest of the first `at` characters; empty if there are fewer."""
        if at > len(self._text):
            return b""
        if at < self._at:
            self._at, self._hash = 0, blake2b(digest_size=_SIZE)
        self._hash.update(self._text[self._at : at].encode("utf-8", "surrogatepass"))
        self._at = at
        return self._hash.digest()


_memos: WeakKeyDictionary[Any, Memo] = WeakKeyDictionary()


def memo_of(tokenizer: Any) -> Memo:
    """The memo that lives as long as `tokenizer`."""
    return _memos.setdefault(tokenizer, Memo())
