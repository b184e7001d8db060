"""A layout as text, in files and in the index, and back: read like anything untrusted.

A text lists kinds of layer and their counts. It must not make anybody allocate, loop or recurse
beyond the largest model's needs, nor name code (law 6).
"""

from __future__ import annotations

import json
import math
from dataclasses import fields
from functools import lru_cache
from typing import Any, Final

from .errors import UnknownKind
from .kinds import LayerKind, ListOf
from .layout import Layout, kind_class, layout_to_json

_MOST_TEXT: Final = 1 << 18  # characters; the longest of mlx-lm's models has some thousands
_MOST_LAYERS: Final = 1 << 12  # parts of lists counted; models have hundreds
_MOST_ARRAYS: Final = 1 << 16  # of all layers
_MOST_DEPTH: Final = 8  # lists in lists
_MOST_NUMBER: Final = 1 << 31
_MOST_WORD: Final = 1 << 10
_TYPES: Final[dict[Any, type]] = {t.__name__: t for t in (int, str, bool, float)}


def layout_to_text(layout: Layout) -> str:
    """A layout as JSON."""
    return json.dumps(layout_to_json(layout))


@lru_cache(maxsize=64)
def layout_from_text(text: str) -> Layout:
    """The layout that a text describes; ValueError for anything else, UnknownKind among it."""
    if not isinstance(text, str) or len(text) > _MOST_TEXT:
        raise ValueError("not a description of layers")
    try:
        runs = [_run(run) for run in _list(json.loads(text))]
    except RecursionError:
        raise ValueError("not a description of layers: too deep") from None
    layers = sum(count * _size(kind) for count, kind in runs)
    arrays = sum(count * _arity(kind) for count, kind in runs)
    if not 0 < layers <= _MOST_LAYERS or arrays > _MOST_ARRAYS:
        raise ValueError(f"{layers} layers with {arrays} arrays are more than any model has")
    return tuple(kind for count, kind in runs for _ in range(count))


def _run(run: Any) -> tuple[int, LayerKind]:
    count, described = _list(run, 2)
    if type(count) is not int or not 0 < count <= _MOST_LAYERS:
        raise ValueError("a count of layers that is none")
    return count, _kind(described, 0)


def _kind(described: Any, depth: int) -> LayerKind:
    name, settings = _list(described, 2)
    if depth > _MOST_DEPTH or not isinstance(name, str):
        raise ValueError("a kind of layer that is none")
    if name == ListOf.name:
        return ListOf(tuple(_kind(part, depth + 1) for part in _list(settings)))
    found = kind_class(name)
    if found is None:
        raise UnknownKind(f"nobody here knows layers of the kind {name[:40]!r}")
    types = {field.name: field.type for field in fields(found)}
    if not isinstance(settings, dict) or not all(
        name in types and _is_setting(value, types[name]) for name, value in settings.items()
    ):
        raise ValueError("settings of a layer that are none")
    try:
        kind: LayerKind = found(**settings)
    except Exception as error:  # a plugin's class may raise anything
        raise ValueError(f"settings of a layer that are none: {error!r:.100}") from None
    return kind


def _list(value: Any, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise ValueError("not a description of layers")
    return value


def _is_setting(value: Any, declared: Any) -> bool:
    """True if a value is a plain and bounded one of the type that a field declares."""
    if type(value) is not _TYPES.get(declared, type(value)):
        return False
    if isinstance(value, int):  # a bool among them
        return 0 <= value < _MOST_NUMBER
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or (isinstance(value, str) and len(value) <= _MOST_WORD)


def _size(kind: LayerKind) -> int:
    return 1 + (sum(map(_size, kind.parts)) if isinstance(kind, ListOf) else 0)


def _arity(kind: LayerKind) -> int:
    arity = kind.arity
    if type(arity) is not int or not 0 <= arity <= _MOST_ARRAYS:
        raise ValueError("a number of arrays that is none")
    return arity
