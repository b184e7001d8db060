"""Calls without marks around them, as JSON Schema: one grammar with a document beside them.

A lexer that knows a call's beginning as one literal mistakes the `{` of a document for it. As two
branches of one schema both are JSON, read key by key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .forms import CallLayout, Form, Hole

__all__ = ["Alternative", "either_schema", "is_bare"]

_NAME, _ARGUMENTS = "\x00name", "\x00arguments"
_MAPS = frozenset(["properties", "patternProperties"])
_VALUES = frozenset(["enum", "const"])


class Alternative(NamedTuple):
    """A tool's name, and the schema of its arguments as a grammar can hold it."""

    name: str
    arguments: Mapping[str, Any]


def is_bare(form: Form) -> bool:
    """True if a call of `form` begins as a JSON document may, and is nothing but JSON."""
    return _skeleton(form) is not None


def either_schema(
    form: Form, tools: Sequence[Alternative], document: Mapping[str, Any], calls: int
) -> dict[str, Any]:
    """A call of one of `tools` as a bare `form` writes it, or a document."""
    skeleton = _skeleton(form)
    definitions: dict[str, Any] = {}
    branches = []
    for number, tool in enumerate(tools):
        arguments = _moved(tool.arguments, f"tool{number}-", definitions)
        branches.append(_call(skeleton, tool.name, arguments))
    if isinstance(skeleton, list):
        listed = {"anyOf": [branch["items"] for branch in branches]}
        branches = [{"type": "array", "items": listed, "minItems": 1, "maxItems": calls}]
    made = {"anyOf": [*branches, _moved(document, "document-", definitions)]}
    return {**made, "$defs": definitions} if definitions else made


def _skeleton(form: Form) -> Any:
    """A call as JSON, with names in its variable places; None if it is something else."""
    if form.layout not in (CallLayout.OBJECT, CallLayout.KEYED) or form.keys.encoded:
        return None
    holes = {Hole.NAME: _NAME, Hole.ARGUMENTS: json.dumps(_ARGUMENTS)}
    call = "".join(piece if isinstance(piece, str) else holes.get(piece, "") for piece in form.call)
    try:
        found = json.loads((form.start + call + form.end).replace(_NAME, json.dumps(_NAME)[1:-1]))
    except ValueError:
        return None
    one = found[0] if isinstance(found, list) and len(found) == 1 else found
    return found if isinstance(one, dict) else None


def _call(skeleton: Any, name: str, arguments: Any) -> dict[str, Any]:
    """The schema of `skeleton` with this name and these arguments in their places."""
    if isinstance(skeleton, list):
        return {"type": "array", "items": _call(skeleton[0], name, arguments)}
    if isinstance(skeleton, dict):
        keys = {name if key == _NAME else key: inner for key, inner in skeleton.items()}
        return {
            "type": "object",
            "properties": {key: _call(inner, name, arguments) for key, inner in keys.items()},
            "required": list(keys),
            "additionalProperties": False,
        }
    if skeleton == _ARGUMENTS:
        return dict(arguments)
    return {"const": name if skeleton == _NAME else skeleton}


def _moved(schema: Any, prefix: str, definitions: dict[str, Any]) -> Any:
    """A schema whose definitions are moved to `definitions`, under names of their own."""
    if isinstance(schema, list):
        return [_moved(one, prefix, definitions) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "$defs" and isinstance(value, Mapping):
            for name, one in value.items():
                definitions[prefix + name] = _moved(one, prefix, definitions)
        elif key == "$ref" and isinstance(value, str):
            made[key] = value.replace("#/$defs/", f"#/$defs/{prefix}", 1)
        elif key in _MAPS and isinstance(value, Mapping):
            made[key] = {name: _moved(one, prefix, definitions) for name, one in value.items()}
        else:
            made[key] = value if key in _VALUES else _moved(value, prefix, definitions)
    return made
