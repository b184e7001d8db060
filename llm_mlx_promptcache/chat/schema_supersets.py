"""Rules of a schema that no grammar can hold -> the nearest that one can.

Each step takes every document that the schema takes, and maybe more; the loss is named. The grammar
engine counts no items, compares none and looks at no value twice, so these are known from the
start; its other refusals are found by trying (`schema_loosening.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .schema_conditions import Conditions
from .schema_dialects import LeftOut, Modern
from .schema_instances import endless_definitions
from .schema_references import escaped
from .schema_words import count, meant_types

__all__ = ["superset"]

_KINDS = ("string", "number", "boolean", "array", "object", "null")
_MAPS = ("properties", "patternProperties")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("additionalProperties", "items")
_CHECKED_LATER = (
    *("if", "then", "else", "not", "contains", "minContains", "maxContains", "uniqueItems"),
    *("dependentRequired", "dependentSchemas", "propertyNames", "unevaluatedItems"),
    "unevaluatedProperties",
)
_APPLICATORS = ("$ref", "anyOf", "oneOf", "allOf", "if", "dependentSchemas", "patternProperties")
_MOST_NAMES = 2_000
# Nested counts multiply, and both engines write such a pattern out.
_LONGEST_PATTERN = 4096
_MOST_WRITTEN_OUT = 20_000
_COUNTED = re.compile(r"\{(\d*)(,?)(\d*)\}")


def superset(given: Modern, left_out: list[LeftOut]) -> dict[str, Any]:
    """The schema without parts known to have no grammar; their places go into `left_out`."""
    work = _Superset(given, left_out)
    made: dict[str, Any] = work.schema(given.schema, "")
    definitions = given.schema.get("$defs", {})
    endless = endless_definitions(definitions, given.pointers)
    if definitions:
        made["$defs"] = {
            # A schema that only ever contains itself has no document.
            name: False if name in endless else work.schema(one, given.pointers[name])
            for name, one in definitions.items()
        }
    return made


def pattern_size(pattern: str) -> int:
    """The approximate size of a pattern once its counts are written out."""
    total, stack, last = 0, [], 0
    at = 0
    while at < len(pattern):
        if pattern[at] == "(":
            stack.append(total)
            total, last = 0, 0
        elif pattern[at] == ")" and stack:
            last, total = total, stack.pop() + total
        elif pattern[at] == "[":
            end = _class_end(pattern, at)
            last, at = 1, end
            total += 1
        elif (found := _COUNTED.match(pattern, at)) is not None:
            most = int((found[3] or found[1] or "1")[:9])
            total += last * (max(most, 1) - 1)
            last *= max(most, 1)
            at = found.end() - 1
        elif pattern[at] not in "*+?|":
            at += pattern[at] == "\\"
            last = 1
            total += 1
        if total > _MOST_WRITTEN_OUT:
            return total
        at += 1
    return total


def holds_pattern(pattern: str) -> bool:
    """True if a pattern is small enough for any engine."""
    deep = pattern.count("(") <= 200
    return len(pattern) <= _LONGEST_PATTERN and deep and pattern_size(pattern) <= _MOST_WRITTEN_OUT


def _class_end(pattern: str, start: int) -> int:
    at = start + 1
    while at < len(pattern) and (pattern[at] != "]" or at == start + 1):
        at += 2 if pattern[at] == "\\" else 1
    return at


class _Superset:
    def __init__(self, given: Modern, left_out: list[LeftOut]) -> None:
        self._definitions: Mapping[str, Any] = given.schema.get("$defs", {})
        self._left_out = left_out
        self._later = Conditions(self._resolved)

    def _leave(self, pointer: str, keyword: str) -> None:
        self._left_out.append(LeftOut(pointer, keyword))

    def schema(self, node: Any, pointer: str) -> Any:
        if not isinstance(node, Mapping):
            return node
        made = {key: value for key, value in node.items() if key not in _CHECKED_LATER}
        made.pop("$defs", None)
        for key in _MAPS:
            if key in made:
                made[key] = {
                    name: self.schema(one, f"{pointer}/{key}/{escaped(name)}")
                    for name, one in made[key].items()
                }
        for key in _LISTS:
            if key in made:
                made[key] = [
                    self.schema(one, f"{pointer}/{key}/{at}") for at, one in enumerate(made[key])
                ]
        for key in _SINGLE:
            if key in made:
                made[key] = self.schema(made[key], f"{pointer}/{key}")
        self._patterns(made, pointer)
        self._names(node, made, pointer)
        self._items(node, made, pointer)
        self._conditions(node, made, pointer)
        self._named_later(node, made, pointer)
        if kinds := meant_types(made):
            made["type"] = kinds[0] if len(kinds) == 1 else kinds
        return made

    def _patterns(self, made: dict[str, Any], pointer: str) -> None:
        if "pattern" in made and not holds_pattern(made["pattern"]):
            made.pop("pattern")
            # It is a string's all the same.
            made.setdefault("type", "string")
            self._leave(pointer, "pattern")
        patterns = made.get("patternProperties", {})
        if not all(map(holds_pattern, patterns)):
            made.pop("patternProperties")
            made.pop("additionalProperties", None)
            self._leave(pointer, "patternProperties")

    def _names(self, node: Mapping[str, Any], made: dict[str, Any], pointer: str) -> None:
        """`propertyNames` as properties or patterns, if those say the same."""
        if node.get("unevaluatedProperties") is False and not set(node).intersection(_APPLICATORS):
            made.setdefault("additionalProperties", False)
        elif node.get("unevaluatedProperties", True) not in (True, {}):
            self._leave(pointer, "unevaluatedProperties")
        names = self._resolved(node.get("propertyNames", {}))
        if not isinstance(names, Mapping):
            if names is False:
                made["properties"], made["additionalProperties"] = {}, False
            return
        said = set(names) - {"type", "format"}
        others = made.get("additionalProperties", {})
        listed = names.get("enum", [names["const"]] if "const" in names else None)
        if listed is not None and said <= {"enum", "const"} and len(listed) <= _MOST_NAMES:
            if "patternProperties" not in made:
                declared = made.get("properties", {})
                allowed = [name for name in listed if isinstance(name, str)]
                kept = {name: declared.get(name, others) for name in allowed}
                made["properties"] = {k: v for k, v in kept.items() if v is not False}
                made["additionalProperties"] = False
                return
        elif said and said <= {"pattern", "minLength", "maxLength"} and len(said) == 1:
            pattern = _pattern_of(names)
            alone = not made.get("properties") and "patternProperties" not in made
            if alone and holds_pattern(pattern):
                made["patternProperties"] = {pattern: others}
                made["additionalProperties"] = False
                return
        if said:
            self._leave(pointer, "propertyNames")

    def _items(self, node: Mapping[str, Any], made: dict[str, Any], pointer: str) -> None:
        if node.get("uniqueItems"):
            self._leave(pointer, "uniqueItems")
            values = self._resolved(node.get("items", {}))
            listed = values.get("enum") if isinstance(values, Mapping) else None
            if listed and "prefixItems" not in made:
                # As many as there are to choose from.
                made["maxItems"] = min(made.get("maxItems", len(listed)), len(listed))
        if "contains" in node:
            self._leave(pointer, "contains")
            wanted = count(node.get("minContains", 1)) or 0
            if wanted and made.get("type") == "array":
                made["minItems"] = max(made.get("minItems", 0), wanted)
        if node.get("unevaluatedItems", True) not in (True, {}):
            self._leave(pointer, "unevaluatedItems")

    def _conditions(self, node: Mapping[str, Any], made: dict[str, Any], pointer: str) -> None:
        if "if" in node and ("then" in node or "else" in node):
            self._leave(pointer, "if")
        for key in ("dependentRequired", "dependentSchemas"):
            if node.get(key):
                self._leave(pointer, key)
        refused = node.get("not", False)
        if refused is False:
            return
        kinds = refused.get("type") if isinstance(refused, Mapping) else None
        if kinds is not None and set(refused) == {"type"} and "type" not in made:
            listed = [kinds] if isinstance(kinds, str) else kinds
            left = [kind for kind in _KINDS if kind not in listed]
            if "integer" not in listed and left:
                made["type"] = left
                return
        self._leave(pointer, "not")

    def _named_later(self, node: Mapping[str, Any], made: dict[str, Any], pointer: str) -> None:
        """Properties that only conditions declare, beside the others; they are checked later."""
        declared = made.get("properties")
        if not declared or {"additionalProperties", "patternProperties"} & set(made):
            return
        found: dict[str, list[Any]] = {}
        for name, schema, at in self._later.named(node, pointer):
            if name not in declared:
                shapes = found.setdefault(name, [])
                shapes += [] if schema in (None, False) else [self.schema(schema, at)]
        if found:
            added = {name: _either(shapes) for name, shapes in found.items()}
            made["properties"] = {**declared, **added}

    def _resolved(self, node: Any) -> Any:
        """The schema itself, or the target of its reference, a few steps far."""
        for _ in range(8):
            if not isinstance(node, Mapping) or "$ref" not in node:
                return node
            node = self._definitions.get(str(node["$ref"]).rpartition("/")[2], {})
        return {}


def _either(shapes: list[Any]) -> Any:
    """One schema for a value that has to fit one of these; with none, anything."""
    return {"anyOf": shapes} if len(shapes) > 1 else shapes[0] if shapes else {}


def _pattern_of(names: Mapping[str, Any]) -> str:
    if "pattern" in names:
        return str(names["pattern"])
    most = names.get("maxLength", "")
    return f"^(?s:.{{{names.get('minLength', 0)},{most}}})$"
