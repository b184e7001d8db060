"""Arguments as their tool's schema wants them: a model's text -> values of the right types.

Text is untrusted: the work is bounded, and values that JSON can't write back (endless numbers, two
values under one key) are refused.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping
from typing import Any, cast

from .argument_schemas import (
    branches_of,
    choices_of,
    item_schema,
    kind_of,
    kinds_of,
    parameters_of,
    property_schema,
    required_of,
)

__all__ = [
    "branches_of",
    "fitted",
    "fitted_object",
    "json_value",
    "kind_of",
    "kinds_of",
    "literal",
    "parameters_of",
    "property_schema",
    "unfit",
    "value_of",
]

_DEEPEST = 16
_LONGEST_LITERAL = 1 << 20
# Just below Python's own limit of 4,300 digits.
_MOST_BITS = 14_000
_CONSTANTS = {"True": True, "False": False, "None": None, "true": True, "false": False}
_STRING = frozenset(["string"])


def value_of(text: str, schema: Any) -> Any:
    """The value of `text` between marks: a string, or a literal if the schema takes its type.

    Text that is no value of any wanted type stays text, for the tool to refuse.
    """
    kinds = kinds_of(schema)
    if text in choices_of(schema):
        return text
    try:
        value = literal(text.strip())
    except ValueError:
        return text
    if isinstance(value, str):
        # Unasked quotes are part of a text.
        return text if "string" in kinds else value
    return value if kind_of(value, kinds) in kinds else text


def fitted(value: Any, schema: Any, depth: int = _DEEPEST) -> Any:
    """A value with the types that the schema asks for, if the conversion loses nothing."""
    kinds = kinds_of(schema)
    if isinstance(value, str):
        return value if "string" in kinds else value_of(value, schema)
    if isinstance(value, float) and value.is_integer() and not _is_choice(value, schema):
        # 5.0 is an integer to JSON Schema, and to no function.
        return int(value) if "integer" in kinds and _only_whole(schema) else value
    if type(value) is int and kinds & {*_STRING, "integer", "number"} == _STRING:
        return value if _is_choice(value, schema) else str(value)
    if depth > 0 and isinstance(value, Mapping):
        return fitted_object(value, schema, depth)
    if depth > 0 and isinstance(value, list):
        inner = item_schema(schema)
        return [fitted(one, inner, depth - 1) for one in value] if inner else value
    return value


def fitted_object(value: Mapping[str, Any], schema: Any, depth: int = _DEEPEST) -> dict[str, Any]:
    """An object's values fitted; null is dropped for optional arguments that can't be null."""
    made: dict[str, Any] = {}
    required = required_of(schema)
    for key, one in value.items():
        inner = property_schema(schema, key)
        if one is None and key not in required and "null" not in kinds_of(inner):
            continue
        made[key] = fitted(one, inner, depth - 1)
    return made


def unfit(value: Any, schema: Any, where: str = "", depth: int = _DEEPEST) -> str:
    """The reason why a value lacks a part or has a wrong type for its schema; "" if it fits.

    Names types and arguments, and no values.
    """
    kinds = kinds_of(schema)
    kind = kind_of(value, kinds)
    # All arguments together are an object, whatever their schema says.
    if where and kind not in kinds and not _is_choice(value, schema):
        asked = " or ".join(sorted(kinds))
        return f"{where} has the type {kind}, where the schema asks for {asked}"
    if depth > 0 and isinstance(value, Mapping):
        for key in required_of(schema):
            if key not in value:
                return f"{_path(where, key)} is missing"
        for key, one in value.items():
            if reason := unfit(one, property_schema(schema, key), _path(where, key), depth - 1):
                return reason
    if depth > 0 and isinstance(value, list) and (inner := item_schema(schema)):
        reasons = (unfit(one, inner, f"an item of {where}", depth - 1) for one in value)
        return next((reason for reason in reasons if reason), "")
    return ""


def _path(where: str, key: str) -> str:
    shown = key[:64].encode("ascii", "backslashreplace").decode()
    return f"{where}.{shown}" if where else f"its argument {shown}"


def _is_choice(value: Any, schema: Any) -> bool:
    return any(type(one) is type(value) and one == value for one in choices_of(schema))


def _only_whole(schema: Any) -> bool:
    """True if a number must be an integer: if others are allowed too, it stays as written."""
    return kind_of(0.5) not in kinds_of(schema)


def literal(text: str) -> Any:
    """The value of a JSON or Python literal; ValueError if `text` is none, or too long."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    try:
        return _loaded(text)
    except (ValueError, RecursionError):
        pass
    if len(text) > _LONGEST_LITERAL or text[:1] not in "[{('\"-.0123456789":
        raise ValueError("no literal")
    try:
        return _plain(ast.literal_eval(_PythonNames().visit(ast.parse(text, mode="eval"))))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError("no literal") from None


def json_value(text: str) -> Any:
    """The value of JSON text, line ends inside strings allowed; ValueError if it is none."""
    try:
        return _loaded(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


class _PythonNames(ast.NodeTransformer):
    """JSON's words inside a Python literal; ValueError for one key with two values."""

    def visit_Dict(self, node: ast.Dict) -> ast.expr:
        """The same object, its parts visited."""
        keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
        if len(set(keys)) < len(node.keys):
            raise ValueError("a key has two values")
        return cast("ast.expr", self.generic_visit(node))

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """A constant for `true`, `false` and `null`."""
        names = {"true": True, "false": False, "null": None}
        if node.id not in names:
            return node
        return ast.copy_location(ast.Constant(names[node.id]), node)


def _plain(value: Any) -> Any:
    """A Python literal as JSON data; ValueError for values that JSON has no form for."""
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("a key is no text")
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("no JSON")
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise ValueError("a number is too large")
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise ValueError("no JSON")


def _loaded(text: str) -> Any:
    return json.loads(
        text,
        parse_constant=_refuse,
        parse_float=_float,
        object_pairs_hook=_object,
        strict=False,
    )


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _float(text: str) -> float:
    # JSON takes 1e999; a float does not, and what is near it is another number.
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; ValueError if one key has two values, since either could be meant."""
    made = dict(pairs)
    if len(made) < len(pairs) and any(value != made[key] for key, value in pairs):
        raise ValueError("a key has two values")
    return made
