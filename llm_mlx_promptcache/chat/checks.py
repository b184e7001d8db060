"""Checks of single values that name the field, and show none of a conversation's text."""

from __future__ import annotations

import math
from collections.abc import Mapping

_DEEPEST = 64
# An object inside a schema's object is two levels of JSON.
DEEPEST_SCHEMA = 160


def check_text(field: str, value: object) -> None:
    """ValueError if `value` is no text that every encoding takes."""
    if not isinstance(value, str):
        raise ValueError(f"{field} is a {type(value).__name__}; give a str")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # `from None`: the error holds the whole text.
        raise ValueError(
            f"{field} has half a surrogate pair at character {error.start}; give valid Unicode"
        ) from None


def check_json(field: str, value: object, depth: int = 0, *, deepest: int = _DEEPEST) -> None:
    """ValueError if JSON has no form for `value`, or for something in it."""
    if depth > deepest:
        raise ValueError(f"{field} is nested more than {deepest} deep; flatten it")
    if isinstance(value, str):
        check_text(field, value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            check_text(f"a key in {field}", key)
            check_json(field, inner, depth + 1, deepest=deepest)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            check_json(field, inner, depth + 1, deepest=deepest)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{field} holds {value}, which JSON has no form for; give a finite number")
    elif value is not None and not isinstance(value, (bool, int, float)):
        kind = type(value).__name__
        raise ValueError(f"{field} holds a {kind}, which JSON has no form for; give plain data")
