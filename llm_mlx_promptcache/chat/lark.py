"""Text in the grammar engine's own language (a kind of Lark)."""

from __future__ import annotations

import json
import re

from .forms import Form

_CONTROLS = re.compile(r"[\x7f-\x9f\u2028\u2029]")
_REGEX = re.compile(r"[\\.+*?()|\[\]{}^$#&\-~/]")


def literal(text: str, form: Form) -> str:
    """Text as the model writes it: with its special tokens by their ids; "" for no text."""
    special = dict(form.special)
    parts = (
        f"<[{special[part]}]>" if part in special else quoted(part) for part in parts_of(text, form)
    )
    return " ".join(parts)


def parts_of(text: str, form: Form) -> list[str]:
    """Text split at the model's special tokens, which are parts of their own."""
    if not form.special:
        return [text] if text else []
    longest_first = sorted((mark for mark, _ in form.special), key=len, reverse=True)
    marks = "|".join(map(re.escape, longest_first))
    return [part for part in re.split(f"({marks})", text) if part]


def quoted(text: str) -> str:
    """A literal of exactly this text."""
    # Characters that Lark's lexer refuses inside a string, unless escaped.
    return _CONTROLS.sub(
        lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False)
    )


def regex_of(text: str) -> str:
    """The inside of a regex that matches exactly this text."""
    made = _REGEX.sub(lambda found: f"\\{found[0]}", text)
    return "".join(
        character if character.isprintable() else f"\\x{{{ord(character):x}}}" for character in made
    )
