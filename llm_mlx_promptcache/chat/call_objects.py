"""Calls that are JSON objects: their parts as Python values."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from .arguments import fitted_object, json_value, literal
from .checks import check_json


def new_call_id() -> str:
    """An id that no other call has."""
    return f"call_{secrets.token_hex(12)}"


def with_arguments(text: str, keys: Sequence[str]) -> str:
    """`text` with `{}` added if a template writes nothing behind one of `keys`: no arguments."""
    return _no_value(tuple(keys)).sub(r"\1{}", text)


def named_in(text: str, keys: Sequence[str]) -> str:
    """The name under one of `keys` in an unreadable object; empty if there is none."""
    found = _named(tuple(keys)).search(text)
    return found[1] if found is not None else ""


@lru_cache(maxsize=64)
def _no_value(keys: tuple[str, ...]) -> re.Pattern[str]:
    # Inside a string its quotes would be escaped.
    return re.compile(rf'("(?:{"|".join(map(re.escape, keys))})"\s*:)\s*(?=[,}}])')


@lru_cache(maxsize=64)
def _named(keys: tuple[str, ...]) -> re.Pattern[str]:
    listed = "|".join(map(re.escape, keys))
    return re.compile(rf"[\"'](?:{listed})[\"']\s*:\s*[\"']([^\"'\\]{{1,128}})[\"']")


def object_of(text: str) -> dict[str, Any] | None:
    """The object that `text` holds, as JSON or as Python writes it."""
    try:
        found = json_value(text)
    except ValueError:
        try:
            found = literal(text)
        except ValueError:
            return None
    return found if isinstance(found, dict) else None


def read_object(text: str, schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """Arguments that are one JSON object, or nothing; None if they can't be read."""
    found = as_arguments(text)
    try:
        check_json("a call's arguments", found or {})
    except ValueError:
        return None
    return None if found is None else fitted_object(found, schema)


def as_arguments(value: Any) -> dict[str, Any] | None:
    """A call's arguments: an object, one in a string, or nothing at all."""
    if isinstance(value, str):
        return object_of(value) if value.strip() else {}
    if value is None:
        return {}
    return dict(value) if isinstance(value, Mapping) else None


def value_at(value: Any, keys: Sequence[str]) -> Any:
    """The value under a path of keys; None if there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def first_of(value: Any, keys: Sequence[str]) -> Any:
    """The value under the first of `keys` that an object has."""
    if not isinstance(value, Mapping):
        return None
    return next((value[key] for key in keys if key in value), None)
