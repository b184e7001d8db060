"""Single words of JSON Schemas as people write them: types, numbers, yes and no."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_KINDS = ("string", "integer", "number", "boolean", "array", "object", "null")
# Their names in languages, databases and other schemas.
_NAMES = {
    **{kind: kind for kind in _KINDS},
    **dict.fromkeys(["str", "text", "char", "varchar", "password", "file", "binary"], "string"),
    **dict.fromkeys(["date", "datetime", "date-time", "time", "timestamp", "duration"], "string"),
    **dict.fromkeys(["uuid", "uri", "url", "email", "hostname", "byte", "bytes"], "string"),
    **dict.fromkeys(["int", "int32", "int64", "long", "bigint", "uint"], "integer"),
    **dict.fromkeys(["float", "double", "decimal", "numeric", "float32", "float64"], "number"),
    **dict.fromkeys(["bool"], "boolean"),
    **dict.fromkeys(["list", "tuple", "set", "frozenset", "sequence"], "array"),
    **dict.fromkeys(["dict", "map", "mapping", "record", "struct"], "object"),
    **dict.fromkeys(["none", "nil", "nonetype"], "null"),
}
# Keywords for values of one kind alone; and keywords that decide the kinds themselves.
_OF_KIND = (
    ("object", ("properties", "required", "additionalProperties", "patternProperties")),
    ("array", ("items", "prefixItems", "minItems", "maxItems")),
    ("string", ("pattern", "minLength", "maxLength")),
    ("number", ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")),
)
_SAY_KINDS = ("type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const")
_ANY = frozenset(["any", "unknown", "mixed", "type_unspecified", "*", ""])


def kinds_of_type(given: Any) -> tuple[list[str], bool]:
    """The JSON types that a `type` names, none for any; and True if it has words that mean none."""
    listed = given if isinstance(given, (list, tuple)) else [] if given is None else [given]
    # In a list a bare None is often what "null" was in YAML.
    words = ["null" if one is None else one for one in listed]
    known: list[str] = []
    unknown = False
    for word in words:
        name = word.strip().lower() if isinstance(word, str) else None
        if name is not None and name in _ANY:
            return [], False
        kind = _NAMES.get(name) if name is not None else None
        if kind is None:
            unknown = True
        elif kind not in known:
            known.append(kind)
    # An unknown word may mean anything.
    return ([], True) if unknown else (known, False)


def meant_types(schema: Mapping[str, Any]) -> list[str]:
    """The types that a schema means but does not name: to the letter any other would do too."""
    if any(key in schema for key in _SAY_KINDS):
        return []
    return [kind for kind, words in _OF_KIND if any(word in schema for word in words)]


def truth(given: Any) -> bool | None:
    """Yes or no, also as a word; None for anything else."""
    if isinstance(given, bool):
        return given
    if isinstance(given, str):
        return {"true": True, "false": False}.get(given.strip().lower())
    return None


def limit(given: Any) -> int | float | None:
    """A number, also as text; None for anything else."""
    if isinstance(given, str):
        try:
            given = int(given) if len(given) < 40 else float(given)
        except ValueError:
            try:
                given = float(given)
            except ValueError:
                return None
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        return None
    return given if isinstance(given, int) or math.isfinite(given) else None


def count(given: Any) -> int | None:
    """A whole number of zero or more, also as text or 2.0; None for anything else."""
    number = limit(given)
    if number is None or number < 0 or number != int(number):
        return None
    return int(number)


def is_of(value: Any, kinds: str | list[str] | None) -> bool:
    """True if a value is of one of these JSON types; None stands for all of them."""
    if kinds is None:
        return True
    listed = [kinds] if isinstance(kinds, str) else kinds
    if value is None:
        return "null" in listed
    if isinstance(value, bool):
        return "boolean" in listed
    if isinstance(value, (int, float)):
        whole = isinstance(value, int) or value.is_integer()
        return "number" in listed or (whole and "integer" in listed)
    by_class = ((str, "string"), (Mapping, "object"), ((list, tuple), "array"))
    return any(isinstance(value, python) and kind in listed for python, kind in by_class)
