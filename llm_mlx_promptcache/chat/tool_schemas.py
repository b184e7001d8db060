"""Tools in one canonical order: any order of listing gives the same prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .checks import DEEPEST_SCHEMA, check_json, check_text

# The order readers expect; other keys follow alphabetically.
_ORDER = (
    "type",
    "function",
    "name",
    "description",
    "title",
    "parameters",
    "enum",
    "const",
    "properties",
    "items",
    "required",
    "additionalProperties",
    "default",
)
_RANK = {key: rank for rank, key in enumerate(_ORDER)}
# Here keys are names that the application chose, in an order that it meant (a model fills them
# in that order), so it stays. Every store of JSON keeps it.
_NAMED = frozenset(["properties", "$defs", "definitions", "patternProperties"])


def canonical_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tools in OpenAI's form, sorted by name and with keys in a fixed order.

    ValueError names the missing part. A tool's properties keep their declared order.
    """
    found: dict[str, dict[str, Any]] = {}
    for index, tool in enumerate(tools):
        name = _name(index, tool)
        if name in found:
            raise ValueError(f"tools[{index}].function.name is {name!r} again; name each tool once")
        check_json(f"tools[{index}]", tool, deepest=DEEPEST_SCHEMA)
        found[name] = _ordered({"type": "function", **tool})
    return [found[name] for name in sorted(found)]


def _name(index: int, tool: object) -> str:
    if not isinstance(tool, Mapping):
        raise ValueError(f"tools[{index}] is a {type(tool).__name__}; give a dict")
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise ValueError(
            f"tools[{index}].function is a {type(function).__name__}; give a dict with name,"
            " description and parameters"
        )
    name = function.get("name")
    check_text(f"tools[{index}].function.name", name)
    if not isinstance(name, str) or not name:
        raise ValueError(f"tools[{index}].function.name is empty; give the tool a name")
    return name


def _ordered(value: Any, *, named: bool = False) -> Any:
    """`value` with the keys of schemas in a fixed order; `named`: its keys are names."""
    if isinstance(value, Mapping):
        keys = list(value) if named else sorted(value, key=_rank)
        return {key: _inner(key, value[key], named=named) for key in keys}
    if isinstance(value, (list, tuple)):
        return [_ordered(inner) for inner in value]
    return value


def _inner(key: str, value: Any, *, named: bool) -> Any:
    # A default is a value, not a schema: its keys are the application's too.
    names = key in _NAMED or key in ("default", "const", "enum")
    return _ordered(value, named=not named and names)


def _rank(key: str) -> tuple[int, str]:
    return _RANK.get(key, len(_ORDER)), key
