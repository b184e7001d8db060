"""JSON Schemas as people and programs write them -> one well-formed dialect, 2020-12's.

Words of draft 4 to 2019-09, OpenAPI, Gemini and Python become today's; references are resolved
inside the schema and nowhere else, so nothing is ever fetched. Parts without a meaning are dropped
and named. Schemas are untrusted: depth and size are bounded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .schema_references import References, Target, escaped
from .schema_words import count, is_of, kinds_of_type, limit, truth

__all__ = ["LeftOut", "Modern", "modern"]

_DEEPEST = 80
_MOST_NODES = 20_000
_MAPS = ("properties", "patternProperties", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf")
_SINGLE = (
    *("additionalProperties", "items", "contains", "propertyNames", "not", "if", "then", "else"),
    *("unevaluatedProperties", "unevaluatedItems"),
)
_LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_COUNTS = (
    *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
    *("minContains", "maxContains"),
)


class LeftOut(NamedTuple):
    """A part of a schema that no grammar holds: its JSON pointer, and a keyword."""

    pointer: str
    keyword: str

    def __str__(self) -> str:
        return f"{self.keyword} at {self.pointer or '/'}"


@dataclass(frozen=True)
class Modern:
    """A schema of dialect 2020-12, its references all to `$defs` of its root.

    `places` has the pointer of each definition in the given schema; `left_out` names the parts
    without a meaning, `nodes` is the number of schemas.
    """

    schema: dict[str, Any]
    pointers: Mapping[str, str]
    left_out: tuple[LeftOut, ...] = ()
    nodes: int = 0


def modern(schema: Mapping[str, Any]) -> Modern:
    """`schema` in today's dialect; never an error, whatever it holds."""
    work = _Translation(References(schema))
    root = work.schema(schema, "", 0)
    # A definition may refer to further definitions.
    while work.waiting:
        pointer, target = work.waiting.pop()
        work.definitions[work.names[pointer]] = work.schema(target, pointer, 0)
    made = root if isinstance(root, dict) else ({} if root else {"not": {}})
    if work.definitions:
        made["$defs"] = work.definitions
    pointers = {name: pointer for pointer, name in work.names.items()}
    return Modern(made, pointers, tuple(dict.fromkeys(work.left_out)), work.nodes)


@dataclass
class _Translation:
    references: References
    names: dict[str, str] = field(default_factory=dict)
    definitions: dict[str, Any] = field(default_factory=dict)
    waiting: list[Target] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    nodes: int = 0

    def leave(self, pointer: str, keyword: str) -> None:
        self.left_out.append(LeftOut(pointer, keyword))

    def schema(self, given: Any, pointer: str, depth: int) -> dict[str, Any] | bool:
        """One schema, `depth` schemas inside others."""
        self.nodes += 1
        word = truth(given)
        if word is not None:
            return word
        if not isinstance(given, Mapping):
            self.leave(pointer, f"a {type(given).__name__} in place of a schema")
            return {}
        if depth > _DEEPEST or self.nodes > _MOST_NODES:
            self.leave(pointer, "what is nested too deep or too much")
            return {}
        made: dict[str, Any] = {}
        self._types(given, made, pointer)
        self._values(given, made, pointer)
        self._numbers(given, made, pointer)
        self._inner(given, made, pointer, depth)
        self._lists(given, made, pointer, depth)
        self._required(given, made, pointer)
        self._dependencies(given, made, pointer, depth)
        self._reference(given, made, pointer)
        _nullable(given, made)
        return made

    def _types(self, given: Mapping[str, Any], made: dict[str, Any], pointer: str) -> None:
        kinds, unknown = kinds_of_type(given.get("type"))
        if unknown:
            self.leave(pointer, "type")
        if kinds:
            made["type"] = kinds[0] if len(kinds) == 1 else kinds

    def _values(self, given: Mapping[str, Any], made: dict[str, Any], pointer: str) -> None:
        for key in ("pattern", "format"):
            if isinstance(given.get(key), str):
                made[key] = given[key]
            elif given.get(key) is not None:
                self.leave(pointer, key)
        if "const" in given:
            made["const"] = given["const"]
        values = given.get("enum")
        if isinstance(values, (list, tuple)):
            texts = {json.dumps(value, sort_keys=True, default=str): value for value in values}
            made["enum"] = list(texts.values())
            if values and not any(is_of(value, made.get("type")) for value in values):
                # Numbers as strings, say: the values were meant.
                made.pop("type", None)
        elif values is not None:
            self.leave(pointer, "enum")
        if (unique := truth(given.get("uniqueItems"))) is not None:
            made["uniqueItems"] = unique

    def _numbers(self, given: Mapping[str, Any], made: dict[str, Any], pointer: str) -> None:
        for key in (*_LIMITS, *_COUNTS):
            value = given.get(key)
            if value is None or isinstance(value, bool):
                continue
            number = limit(value) if key in _LIMITS else count(value)
            if number is None or (key == "multipleOf" and number <= 0):
                self.leave(pointer, key)
            else:
                made[key] = number
        if "multipleOf" not in made and (step := limit(given.get("divisibleBy"))):
            made["multipleOf"] = abs(step)
        for word, own in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            # Draft 4 has a word beside the number.
            if truth(given.get(word)) and own in made:
                made[word] = made.pop(own)

    def _inner(
        self, given: Mapping[str, Any], made: dict[str, Any], pointer: str, depth: int
    ) -> None:
        for key in _SINGLE:
            value = given.get(key)
            if value is not None and not (key == "items" and isinstance(value, (list, tuple))):
                made[key] = self.schema(value, f"{pointer}/{key}", depth + 1)
        for key in _MAPS:
            value = given.get(key)
            if isinstance(value, Mapping):
                made[key] = {
                    str(name): self.schema(inner, f"{pointer}/{key}/{escaped(name)}", depth + 1)
                    for name, inner in value.items()
                }
            elif value is not None:
                self.leave(pointer, key)

    def _lists(
        self, given: Mapping[str, Any], made: dict[str, Any], pointer: str, depth: int
    ) -> None:
        for key in _LISTS:
            value = given.get(key)
            branches = [value] if isinstance(value, Mapping) else value
            if isinstance(branches, (list, tuple)) and branches:
                made[key] = self._each(branches, f"{pointer}/{key}", depth)
            elif value is not None and branches != []:
                self.leave(pointer, key)
        key = "items" if isinstance(given.get("items"), (list, tuple)) else "prefixItems"
        prefix = given.get(key)
        if isinstance(prefix, (list, tuple)):
            made["prefixItems"] = self._each(prefix, f"{pointer}/{key}", depth)
            rest = given.get("additionalItems")
            if key == "items" and rest is not None:
                made["items"] = self.schema(rest, f"{pointer}/additionalItems", depth + 1)
        elif prefix is not None:
            self.leave(pointer, key)

    def _each(self, given: Sequence[Any], pointer: str, depth: int) -> list[Any]:
        return [self.schema(inner, f"{pointer}/{at}", depth + 1) for at, inner in enumerate(given)]

    def _required(self, given: Mapping[str, Any], made: dict[str, Any], pointer: str) -> None:
        wanted = given.get("required")
        names: list[str] = []
        if isinstance(wanted, (list, tuple)):
            names = [name for name in wanted if isinstance(name, str)]
        elif isinstance(wanted, str) and truth(wanted) is None:
            names = [wanted]
        # Draft 3 has it in the property itself.
        declared = given.get("properties")
        for name, inner in declared.items() if isinstance(declared, Mapping) else ():
            if isinstance(inner, Mapping) and truth(inner.get("required")):
                names.append(str(name))
        if names:
            made["required"] = list(dict.fromkeys(names))

    def _dependencies(
        self, given: Mapping[str, Any], made: dict[str, Any], pointer: str, depth: int
    ) -> None:
        needed: dict[str, list[str]] = {}
        for key in ("dependencies", "dependentRequired"):
            value = given.get(key)
            for name, inner in value.items() if isinstance(value, Mapping) else ():
                if isinstance(inner, (list, tuple)):
                    needed[str(name)] = [one for one in inner if isinstance(one, str)]
                elif key == "dependencies":
                    at = f"{pointer}/{key}/{escaped(name)}"
                    shaped = self.schema(inner, at, depth + 1)
                    made.setdefault("dependentSchemas", {})[str(name)] = shaped
        if needed:
            made["dependentRequired"] = needed

    def _reference(self, given: Mapping[str, Any], made: dict[str, Any], pointer: str) -> None:
        for key in ("$ref", "$dynamicRef", "$recursiveRef"):
            reference = given.get(key)
            if reference is None:
                continue
            found = None
            if isinstance(reference, str):
                found = self.references.target(reference, given)
            if found is None:
                self.leave(pointer, key)
                continue
            if found.pointer not in self.names:
                self.names[found.pointer] = f"d{len(self.names)}"
                self.waiting.append(found)
            made["$ref"] = f"#/$defs/{self.names[found.pointer]}"
            return


def _nullable(given: Mapping[str, Any], made: dict[str, Any]) -> None:
    """OpenAPI 3.0's word for `null` beside a type."""
    if not (truth(given.get("nullable")) or truth(given.get("x-nullable"))):
        return
    kinds = made.get("type")
    if kinds is not None:
        listed = [kinds] if isinstance(kinds, str) else list(kinds)
        made["type"] = [*listed, *(["null"] if "null" not in listed else [])]
    if "enum" in made and None not in made["enum"]:
        made["enum"] = [*made["enum"], None]
    branching = [key for key in ("$ref", "anyOf", "oneOf", "allOf", "const") if key in made]
    if branching and kinds is None:
        whole = dict(made)
        made.clear()
        made["anyOf"] = [whole, {"type": "null"}]
