"""Frozen dataclasses as plain JSON data, and back, each piece checked against its annotation.

Data from a disk is untrusted: only data that the class itself would hold makes one.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_MOST_ENTRIES = 64  # of one tuple
_MEMBER = "is"  # tells a member of an enum from a text


def to_plain(value: Any) -> Any:
    """JSON data of a value; a dataclass's fields with their default values are left out."""
    if isinstance(value, Enum):
        return {_MEMBER: value.value}
    if is_dataclass(value):
        held = {one.name: (getattr(value, one.name), _default(one)) for one in fields(value)}
        return {name: to_plain(has) for name, (has, default) in held.items() if has != default}
    if isinstance(value, tuple):
        return [to_plain(one) for one in value]
    return value


def from_plain(kind: type[T], data: object) -> T:
    """Read the output of `to_plain` for class `kind`; ValueError for anything else."""
    made: T = _made(kind, data)
    return made


def _made(kind: Any, data: Any) -> Any:
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        for one in get_args(kind):
            with suppress(ValueError):
                return _made(one, data)
    elif origin is tuple and isinstance(data, list) and len(data) <= _MOST_ENTRIES:
        kinds = get_args(kind)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(data)
        if len(kinds) == len(data):
            return tuple(map(_made, kinds, data))
    elif kind in (str, int, bool, NoneType):
        if type(data) is kind:
            return data
    elif is_dataclass(kind):
        return _instance(kind, data)
    elif isinstance(kind, type) and issubclass(kind, Enum) and _is_member(data):
        return kind(data[_MEMBER])
    raise ValueError(f"no {kind} is made of this")


def _instance(kind: Any, data: Any) -> Any:
    hints = _hints(kind)
    needed = {one.name for one in fields(kind) if _default(one) is MISSING}
    if not isinstance(data, dict) or not needed <= set(data) <= set(hints):
        raise ValueError(f"no {kind} is made of this")
    return kind(**{name: _made(hints[name], value) for name, value in data.items()})


@cache
def _hints(kind: Any) -> dict[str, Any]:
    known = get_type_hints(kind)
    return {one.name: known[one.name] for one in fields(kind)}


def _is_member(data: Any) -> bool:
    return isinstance(data, dict) and list(data) == [_MEMBER] and isinstance(data[_MEMBER], str)


def _default(one: Field[Any]) -> Any:
    return one.default if one.default_factory is MISSING else one.default_factory()
