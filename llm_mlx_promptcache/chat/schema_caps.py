"""JSON Schemas closed to keys that they never named and, for small models, with limits.

Every document of the capped schema fits the schema that was given. Without a cap a string is as
long as the model wants it: the answer's own limit of tokens ends it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# llguidance refuses others, and in JSON Schema a format is only a remark.
# A tuple: it is searched for the application's values, which may be unhashable.
_FORMATS = (
    *("date-time", "time", "date", "duration", "email"),
    *("hostname", "ipv4", "ipv6", "uuid", "uri"),
)
_MAPS = frozenset(["properties", "$defs", "definitions", "patternProperties"])
_LISTS = frozenset(["anyOf", "oneOf", "allOf", "prefixItems"])
_SINGLE = frozenset(["additionalProperties", "items", "additionalItems"])
_BRANCHES = ("$ref", "anyOf", "oneOf", "allOf", "enum", "const", "not", "if")
_REMARKS = frozenset(
    ["title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"]
).union(["$comment", "$schema", "$id", "$defs", "definitions"])
# llguidance reads limits of integers as floats and fails at the last ones of 64 bits.
_LARGEST = 9 * 10**18
# Values that a schema says nothing about: containers as deep as this, then scalars.
_ANY_DEPTH = 4
_ANY = "mlx-any-"
_PATTERN = 4096


@dataclass(frozen=True)
class Caps:
    """Limits for a schema that sets none: characters of a string, items of a list.

    None leaves them open. With a cap on strings, integers and values of no type get limits too;
    strings with a pattern may have at least `_PATTERN` characters, since that may need more.
    """

    string: int | None = None
    items: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("string", self.string), ("items", self.items)):
            if value is not None and value < 1:
                raise ValueError(f"the cap {name} is {value}; give 1 or more, or None")

    def longest(self, schema: Mapping[str, Any]) -> int | None:
        """The characters that a string of `schema` may have if it sets no limit."""
        if self.string is None:
            return None
        odd = "pattern" in schema or "format" in schema
        return max(self.string, _PATTERN if odd else 0, _whole(schema.get("minLength")))


def capped(schema: Mapping[str, Any], caps: Caps) -> dict[str, Any]:
    """`schema` with caps where it has no limits; plain data in, plain data out."""
    made: dict[str, Any] = _capped(schema, caps, merged=False)
    definitions, merged = schema.get("$defs"), _merged_definitions(schema)
    for name in merged.intersection(definitions) if isinstance(definitions, Mapping) else ():
        made["$defs"][name] = _capped(schema["$defs"][name], caps, merged=True)
    definitions = made.get("$defs", {})
    if not isinstance(definitions, Mapping) or _ANY not in json.dumps(made):
        return made
    return {**made, "$defs": {**definitions, **_any_definitions(caps)}}


def _capped(schema: Any, caps: Caps, *, merged: bool) -> Any:
    """One schema; `merged`: others hold for the same value too, so this one must not be closed."""
    if schema is True:
        return True if caps.string is None else _reference(_ANY_DEPTH)
    if not isinstance(schema, Mapping):
        return schema
    if not set(schema) - _REMARKS and caps.string is not None:
        return {**_children(schema, caps), **_reference(_ANY_DEPTH)}
    made = _children(schema, caps)
    if made.get("format") not in _FORMATS:
        made.pop("format", None)
    if any(key in made for key in _BRANCHES):
        return made
    kinds = _kinds(made)
    longest = caps.longest(made)
    if "string" in kinds and longest is not None:
        made.setdefault("maxLength", longest)
    if "integer" in kinds and "number" not in kinds and longest is not None:
        _bound(made)
    if "array" in kinds:
        _close_list(made, caps)
    if "object" in kinds and not merged:
        _close_object(made, caps)
    return made


def _merged_definitions(schema: Mapping[str, Any]) -> set[str]:
    """Definitions that hold for a value together with others: closed, they would exclude these."""
    found: set[str] = set()
    waiting: list[Any] = [schema]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Mapping):
            together = [key for key in (*_LISTS, "$ref", "properties") if key in one]
            if len(together) > 1 or "allOf" in one:
                # A property may have such a name: its value is no list.
                lists = (one.get(key) for key in _LISTS)
                branches = [inner for each in lists if isinstance(each, list) for inner in each]
                found.update(_reference_of(inner) for inner in (one, *branches))
            waiting += [inner for key, inner in one.items() if key not in ("enum", "const")]
        elif isinstance(one, (list, tuple)):
            waiting += one
    return found


def _reference_of(schema: Any) -> str:
    named = schema.get("$ref") if isinstance(schema, Mapping) else None
    return named.rpartition("/")[2] if isinstance(named, str) else ""


def _children(schema: Mapping[str, Any], caps: Caps) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _MAPS and isinstance(value, Mapping):
            made[key] = {name: _capped(inner, caps, merged=False) for name, inner in value.items()}
        elif key in _LISTS and isinstance(value, (list, tuple)):
            merged = key == "allOf" or "properties" in schema
            made[key] = [_capped(inner, caps, merged=merged) for inner in value]
        elif key in _SINGLE:
            made[key] = _capped(value, caps, merged=False)
        else:
            made[key] = value
    return made


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    kind = schema.get("type")
    if isinstance(kind, str):
        return {kind}
    if isinstance(kind, (list, tuple)):
        return {one for one in kind if isinstance(one, str)}
    return {"object"} if "properties" in schema else {"string"} if "pattern" in schema else set()


def _bound(schema: dict[str, Any]) -> None:
    if "minimum" not in schema and "exclusiveMinimum" not in schema:
        schema["minimum"] = -_LARGEST
    if "maximum" not in schema and "exclusiveMaximum" not in schema:
        schema["maximum"] = _LARGEST


def _close_list(schema: dict[str, Any], caps: Caps) -> None:
    if "prefixItems" not in schema and caps.string is not None:
        schema.setdefault("items", _reference(_ANY_DEPTH - 1))
    if caps.items is not None:
        schema.setdefault("maxItems", max(caps.items, _whole(schema.get("minItems"))))


def _close_object(schema: dict[str, Any], caps: Caps) -> None:
    """Close an object to undeclared properties, unless the schema asks for others."""
    declared = schema.get("properties")
    others = schema.get("additionalProperties")
    required = schema.get("required", ())
    if not isinstance(required, (list, tuple)):
        return
    named = list(declared) if isinstance(declared, Mapping) else []
    unnamed = [name for name in required if name not in named]
    if "patternProperties" in schema:
        return
    if others is None and named and not unnamed:
        schema["additionalProperties"] = False
    elif caps.string is None:
        return
    elif others is None or isinstance(others, Mapping):
        # Keys can only be capped by their pattern.
        value = _reference(_ANY_DEPTH - 1) if others is None else others
        schema["patternProperties"] = {_key_pattern(caps): value}
        schema["additionalProperties"] = False
        if caps.items is not None and "maxProperties" not in schema:
            schema["maxProperties"] = caps.items + len(named) + len(unnamed)


def _key_pattern(caps: Caps) -> str:
    return f"^(?s:.{{0,{caps.string}}})$"


def _reference(depth: int) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{_ANY}{depth}"}


def _any_definitions(caps: Caps) -> dict[str, Any]:
    """Any value at all, with an end to its depth."""
    scalars = [
        {"type": "string", "maxLength": caps.string},
        {"type": "number"},
        {"type": "boolean"},
        {"type": "null"},
    ]
    made: dict[str, Any] = {f"{_ANY}0": {"anyOf": scalars}}
    for depth in range(1, _ANY_DEPTH + 1):
        inner = _reference(depth - 1)
        items: dict[str, Any] = {"type": "array", "items": inner}
        pairs: dict[str, Any] = {
            "type": "object",
            "patternProperties": {_key_pattern(caps): inner},
            "additionalProperties": False,
        }
        if caps.items is not None:
            items["maxItems"], pairs["maxProperties"] = caps.items, caps.items
        made[f"{_ANY}{depth}"] = {"anyOf": [*scalars, items, pairs]}
    return made


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0
