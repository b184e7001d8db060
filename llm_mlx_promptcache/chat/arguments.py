"""Arguments as their tool's schema wants them: what a model wrote -> values of the right types.

A schema is untrusted: only what is needed is looked at, references stay inside it, and the work
is bounded.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

_DEEPEST = 16
_LONGEST_LITERAL = 1 << 20
_ALL = frozenset(["string", "integer", "number", "boolean", "null", "array", "object"])
_CONSTANTS = {"True": True, "False": False, "None": None, "true": True, "false": False}


def parameters_of(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The schema of each tool's arguments, by the tool's name."""
    found: dict[str, Mapping[str, Any]] = {}
    for tool in tools:
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            schema = function.get("parameters")
            found[function["name"]] = schema if isinstance(schema, Mapping) else {}
    return found


def property_schema(schema: Mapping[str, Any], key: str) -> Any:
    """The schema of the value under `key`; `{}` where anything may stand there."""
    for one in _branches(schema, schema, _DEEPEST):
        properties = one.get("properties")
        if isinstance(properties, Mapping) and isinstance(properties.get(key), Mapping):
            return _rooted(properties[key], schema)
    return {}


def kinds_of(schema: Any) -> frozenset[str]:
    """The JSON types that `schema` takes; all of them where it says nothing."""
    found: set[str] = set()
    for one in _branches(schema, schema, _DEEPEST):
        found |= _own_kinds(one)
    return frozenset(found) or _ALL


def value_of(text: str, schema: Any) -> Any:
    """What `text` between marks says: a string, or a literal where the schema takes its type.

    Text that is no value of any type that is asked stays the text, for the tool to refuse.
    """
    kinds = kinds_of(schema)
    if text in _choices(schema):
        return text
    try:
        value = literal(text.strip())
    except ValueError:
        return text
    if isinstance(value, str):
        # Quotes that nobody asked for are part of a text.
        return text if "string" in kinds else value
    return value if kind_of(value, kinds) in kinds else text


def fitted(value: Any, schema: Any) -> Any:
    """A value that was written as JSON; a string only where the schema takes one, if it can be."""
    if not isinstance(value, str) or "string" in kinds_of(schema):
        return value
    return value_of(value, schema)


def literal(text: str) -> Any:
    """The value of a JSON or Python literal; ValueError where `text` is none, or too long."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_float, strict=False)
    except (ValueError, RecursionError):
        pass
    if len(text) > _LONGEST_LITERAL or text[:1] not in "[{('\"-.0123456789":
        raise ValueError("no literal")
    try:
        return _plain(ast.literal_eval(_PythonNames().visit(ast.parse(text, mode="eval"))))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError("no literal") from None


def json_value(text: str) -> Any:
    """The value of JSON text, line ends inside strings taken; ValueError where it is none."""
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_float, strict=False)
    except RecursionError:
        raise ValueError("nested too deep") from None


def kind_of(value: Any, kinds: frozenset[str] = _ALL) -> str:
    """The JSON type of a value; a whole number is an integer where that is asked for."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        whole = isinstance(value, int) or value.is_integer()
        return "integer" if whole and "integer" in kinds else "number"
    kinds_by_class = ((str, "string"), (Mapping, "object"), (list, "array"))
    return next((kind for made, kind in kinds_by_class if isinstance(value, made)), "")


class _PythonNames(ast.NodeTransformer):
    """JSON's words inside a Python literal."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """A constant for `true`, `false` and `null`."""
        names = {"true": True, "false": False, "null": None}
        if node.id not in names:
            return node
        return ast.copy_location(ast.Constant(names[node.id]), node)


def _plain(value: Any) -> Any:
    """A Python literal as JSON has it; ValueError for what JSON has no form for."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if isinstance(key, str)}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise ValueError("no JSON")


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _float(text: str) -> float:
    # JSON takes 1e999; a float does not, and an endless number is no argument.
    return min(max(float(text), -sys.float_info.max), sys.float_info.max)


def _own_kinds(schema: Mapping[str, Any]) -> set[str]:
    kind = schema.get("type")
    if isinstance(kind, str):
        return {kind.lower()}
    if isinstance(kind, (list, tuple)):
        return {one.lower() for one in kind if isinstance(one, str)}
    if "const" in schema:
        return {kind_of(schema["const"])}
    values = schema.get("enum")
    if isinstance(values, (list, tuple)):
        return {kind_of(value) for value in values}
    if isinstance(schema.get("properties"), Mapping):
        return {"object"}
    return set()


def _choices(schema: Any) -> list[Any]:
    """The texts that are all, or some, of what `schema` takes."""
    found: list[Any] = []
    for one in _branches(schema, schema, _DEEPEST):
        values = one.get("enum")
        found += list(values) if isinstance(values, (list, tuple)) else []
        found += [one["const"]] if "const" in one else []
    return [value for value in found if isinstance(value, str)]


def _branches(schema: Any, root: Any, depth: int) -> list[Mapping[str, Any]]:
    """A schema, and those that it says one of must hold, references followed inside `root`."""
    if not isinstance(schema, Mapping) or depth < 0:
        return []
    found = [schema]
    reference = schema.get("$ref")
    if isinstance(reference, str):
        found += _branches(_referred(reference, schema.get(_ROOT, root)), root, depth - 1)
    for key in ("anyOf", "oneOf", "allOf"):
        inner = schema.get(key)
        for one in inner[:64] if isinstance(inner, (list, tuple)) else ():
            found += _branches(_rooted(one, schema.get(_ROOT, root)), root, depth - 4)
    return found[:256]


# Under this key a schema that was taken out of another one carries the whole.
_ROOT = "\x00root"


def _rooted(schema: Any, root: Any) -> Any:
    if not isinstance(schema, Mapping) or _ROOT in schema:
        return schema
    inner = root.get(_ROOT, root) if isinstance(root, Mapping) else root
    return {**schema, _ROOT: inner}


def _referred(reference: str, root: Any) -> Any:
    found = root
    if not reference.startswith("#"):
        return None
    for part in reference[1:].split("/")[1:]:
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if _is(found) else None
    return _rooted(found, root)


def _is(value: Any) -> bool:
    return isinstance(value, Mapping)
