"""The bytes of each token of a tokenizer, if they are the same in every place.

So they are for byte-level, SPM and tekken tokenizers. The work of a fast tokenizer's decoder is
read from its own description, never from its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PLAIN_DECODE = "transformers."  # modules whose `decode` is known


class Rules(NamedTuple):
    """A decoder's rules for tokens: byte-level, or replacements, byte tokens and a trim.

    `trims`: one such character at the start of a text is dropped.
    """

    byte_level: bool = False
    replaced: tuple[tuple[str, str], ...] = ()
    byte_tokens: bool = False
    trims: str = ""


class TokenBytes:
    """Bytes of each id, looked up on first use.

    An id without a token (a hole, or one of the columns that pad a model's logits) has none.
    """

    def __init__(self, tokenizer: Any, rules: Rules) -> None:
        self.rules = rules
        self._tokenizer = tokenizer
        self._added = {
            int(token): str(getattr(added, "content", added))
            for token, added in tokenizer.added_tokens_decoder.items()
        }
        self._known: dict[int, bytes] = {}

    def __getitem__(self, token: int) -> bytes:
        known = self._known.get(token)
        if known is None:
            known = self._known[token] = self._bytes(token)
        return known

    def _bytes(self, token: int) -> bytes:
        text = self._added.get(token)
        if text is None:
            text = self._text(token)
        elif self.rules.byte_level and not self._in_vocabulary(token, text):
            # Added tokens are plain text; only some of them survive the byte alphabet.
            return text.encode("utf-8", "replace")
        if self.rules.byte_level:
            return b"".join(map(_byte_of, text))
        if self.rules.byte_tokens and (match := _BYTE.fullmatch(text)):
            return bytes([int(match[1], 16)])
        for old, new in self.rules.replaced:
            text = text.replace(old, new)
        return text.encode("utf-8", "replace")

    def name(self, token: int) -> bytes:
        """The name of an added token, if its bytes would be no text; else nothing."""
        return self._added.get(token, "").encode("utf-8", "replace")

    def _in_vocabulary(self, token: int, text: str) -> bool:
        """True if a token that was added again had this name in the vocabulary before."""
        return bool(self._tokenizer.backend_tokenizer.model.token_to_id(text) == token)

    def _text(self, token: int) -> str:
        try:
            return self._tokenizer.convert_ids_to_tokens(int(token)) or ""
        except (IndexError, KeyError, OverflowError, ValueError):
            return ""


def token_bytes(tokenizer: Any) -> TokenBytes | None:
    """A tokenizer's table; None if a token's text may depend on its neighbours."""
    rules = _rules_of(tokenizer)
    return TokenBytes(tokenizer, rules) if rules is not None else None


def _rules_of(tokenizer: Any) -> Rules | None:
    own = [getattr(type(tokenizer), name, None) for name in ("decode", "_decode")]
    if any(not str(getattr(f, "__module__", "")).startswith(_PLAIN_DECODE) for f in own):
        return None
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return None
    try:
        return _read(list(_steps(json.loads(decoder.__getstate__()))))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _steps(described: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if described["type"] == "Sequence":
        for inner in described["decoders"]:
            yield from _steps(inner)
    else:
        yield described


def _read(steps: list[dict[str, Any]]) -> Rules | None:
    """The rules that a decoder's steps amount to; None for anything beyond these."""
    rules, fused = Rules(), False
    for step in steps:
        match step:
            case {"type": "ByteLevel"}:
                rules = rules._replace(byte_level=True)
            case {"type": "ByteFallback"}:
                rules = rules._replace(byte_tokens=True)
            case {"type": "Fuse"}:
                fused = True
            case {"type": "Replace", "pattern": {"String": old}, "content": new}:
                rules = rules._replace(replaced=(*rules.replaced, (str(old), str(new))))
            case {"type": "Metaspace", "replacement": mark, "prepend_scheme": scheme}:
                rules = rules._replace(
                    replaced=(*rules.replaced, (str(mark), " ")),
                    trims="" if scheme == "never" else " ",
                )
            case {"type": "Strip", "content": str(char), "start": 0 | 1 as start, "stop": 0} if (
                fused or not start
            ):
                rules = rules._replace(trims=char if start else rules.trims)
            case _:
                return None
    plain = not (rules.replaced or rules.byte_tokens or rules.trims)
    return rules if plain or not rules.byte_level else None


def _byte_of(char: str) -> bytes:
    value = _alphabet().get(char)
    return bytes([value]) if value is not None else char.encode("utf-8", "replace")


@cache
def _alphabet() -> dict[str, int]:
    """GPT-2's alphabet of bytes: printable ones stand for themselves, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(0x100) if value not in printable]
    characters = {chr(value): value for value in printable}
    return characters | {chr(0x100 + number): value for number, value in enumerate(others)}
