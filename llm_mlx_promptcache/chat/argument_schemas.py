"""The arguments in a tool's schema: their names, their types, and the required ones.

A schema is untrusted: only the needed parts are read, references stay inside it, and the work is
bounded. Anything that can't be told is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from .schema_words import kinds_of_type

__all__ = [
    "branches_of",
    "choices_of",
    "item_schema",
    "kind_of",
    "kinds_of",
    "parameters_of",
    "property_schema",
    "required_of",
]

_DEEPEST = 16
_MOST = 256
_WIDEST = 64
_ALL = frozenset(["string", "integer", "number", "boolean", "null", "array", "object"])
_EITHER = ("anyOf", "oneOf")
# The key under which a schema taken out of another one carries the whole.
_ROOT = "\x00root"


def parameters_of(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The schema of each tool's arguments, by the tool's name."""
    schemas: dict[str, Mapping[str, Any]] = {}
    for tool in tools:
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            schema = function.get("parameters")
            schemas[function["name"]] = schema if isinstance(schema, Mapping) else {}
    return schemas


def property_schema(schema: Any, key: str) -> Any:
    """The schema of the value under `key`; `{}` if any value may stand there."""
    schemas = []
    for one in branches_of(schema):
        properties = one.get("properties")
        if isinstance(properties, Mapping) and isinstance(properties.get(key), Mapping):
            schemas.append(_rooted(properties[key], one.get(_ROOT, schema)))
    return _one_of(schemas)


def item_schema(schema: Any) -> Any:
    """The schema of a list's items; `{}` if they may be anything, or if each has its own."""
    schemas = []
    for one in branches_of(schema):
        if "prefixItems" in one:
            return {}
        if isinstance(one.get("items"), Mapping):
            schemas.append(_rooted(one["items"], one.get(_ROOT, schema)))
    return _one_of(schemas)


def kinds_of(schema: Any) -> frozenset[str]:
    """The JSON types that `schema` takes; all of them if it names none."""
    return _kinds(schema, schema, _DEEPEST, [_MOST]) or _ALL


def choices_of(schema: Any) -> list[Any]:
    """Values that `schema` takes: all of them, or some."""
    choices: list[Any] = []
    for one in branches_of(schema):
        values = one.get("enum")
        choices += list(values) if isinstance(values, (list, tuple)) else []
        choices += [one["const"]] if "const" in one else []
    return choices


def required_of(schema: Any) -> list[str]:
    """The properties that an object must have, whichever branch it takes, and with no default."""
    keys: list[str] = []
    for one in branches_of(schema, either=False):
        required = one.get("required")
        keys += [key for key in required if isinstance(key, str)] if _is_list(required) else []
    return [key for key in dict.fromkeys(keys) if "default" not in property_schema(schema, key)]


def kind_of(value: Any, kinds: frozenset[str] = _ALL) -> str:
    """The JSON type of a value; a whole number is an integer if the schema asks for one."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        whole = isinstance(value, int) or value.is_integer()
        return "integer" if whole and "integer" in kinds else "number"
    kinds_by_class = ((str, "string"), (Mapping, "object"), (list, "array"))
    return next((kind for python, kind in kinds_by_class if isinstance(value, python)), "")


def branches_of(schema: Any, *, either: bool = True) -> list[Mapping[str, Any]]:
    """`schema` and the schemas of which one (`either`) or all must hold for the same value."""
    branches: list[Mapping[str, Any]] = []
    waiting = [(schema, 0)]
    for one, depth in waiting:
        if not isinstance(one, Mapping) or len(branches) >= _MOST:
            continue
        branches.append(one)
        if depth < _DEEPEST and len(waiting) < _MOST:
            waiting += [(inner, depth + 1) for inner in _inner(one, schema, either=either)]
    return branches


def _inner(one: Mapping[str, Any], schema: Any, *, either: bool) -> Iterator[Any]:
    root = one.get(_ROOT, schema)
    reference = one.get("$ref")
    if isinstance(reference, str):
        yield _referred(reference, root)
    for key in (*_EITHER * either, "allOf"):
        listed = one.get(key)
        for part in listed[:_WIDEST] if _is_list(listed) else ():
            yield _rooted(part, root)


def _kinds(schema: Any, root: Any, depth: int, left: list[int]) -> frozenset[str]:
    """The types that all parts of a schema allow; `left` is the number of parts to read yet."""
    left[0] -= 1
    if not isinstance(schema, Mapping) or depth < 0 or left[0] < 0:
        return _ALL
    root = schema.get(_ROOT, root)
    kinds = _own_kinds(schema)
    reference = schema.get("$ref")
    if isinstance(reference, str):
        kinds &= _kinds(_referred(reference, root), root, depth - 1, left)
    for key in _EITHER:
        listed = schema.get(key)
        if _is_list(listed) and listed:
            parts = [_kinds(part, root, depth - 1, left) for part in listed[:_WIDEST]]
            kinds &= frozenset().union(*parts) if len(listed) <= _WIDEST else _ALL
    every = schema.get("allOf")
    for part in every[:_WIDEST] if _is_list(every) else ():
        kinds &= _kinds(part, root, depth - 1, left)
    return kinds | {"null"} if schema.get("nullable") is True else kinds


def _own_kinds(schema: Mapping[str, Any]) -> frozenset[str]:
    known, _ = kinds_of_type(schema.get("type"))
    kinds = set(known)
    if not kinds and "const" in schema:
        kinds = {kind_of(schema["const"])}
    elif not kinds and _is_list(values := schema.get("enum")):
        kinds = {kind_of(value) for value in values}
    elif "type" not in schema and isinstance(schema.get("properties"), Mapping):
        kinds = {"object"}
    if "number" in kinds:
        kinds.add("integer")
    return frozenset(kinds) or _ALL


def _one_of(schemas: list[Any]) -> Any:
    if len(schemas) <= 1:
        return schemas[0] if schemas else {}
    return {"anyOf": schemas}


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, (list, tuple))


def _rooted(schema: Any, root: Any) -> Any:
    if not isinstance(schema, Mapping) or _ROOT in schema:
        return schema
    inner = root.get(_ROOT, root) if isinstance(root, Mapping) else root
    return {**schema, _ROOT: inner}


def _referred(reference: str, root: Any) -> Any:
    target = root
    if not reference.startswith("#"):
        return None
    for part in reference[1:].split("/")[1:]:
        target = (
            target.get(part.replace("~1", "/").replace("~0", "~"))
            if isinstance(target, Mapping)
            else None
        )
    return _rooted(target, root)
