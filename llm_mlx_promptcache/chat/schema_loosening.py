"""Schemas as a grammar can hold them: parts that can't be held are dropped, and named.

A tool's schema is seldom the user's to change, so it never refuses a request. Parts that the
grammar engine refuses are found by trying, in bounded work; dropped parts are only checked in the
answer (`schema_check.py`). A loosened schema takes every document of the given one, except endless
ones (`schema_caps.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .grammar_check import UNSATISFIABLE, json_rule, refusal
from .schema_caps import Caps, capped
from .schema_dialects import LeftOut, Modern, modern
from .schema_references import escaped
from .schema_supersets import superset

__all__ = ["Loosened", "loosened", "loosened_arguments", "used_definitions"]

_MOST_TRIALS = 300
_MOST_TRIED = 3_000_000
_LARGEST = 1 << 20
# The grammar engine takes seconds for more.
_MOST_NODES = 2_000
_KEPT = 256
_SAYING_NOTHING = frozenset(["type", "properties", "required"])
# Keywords by what is lost with them, the least first.
_LEAST_FIRST = (
    *("pattern", "minProperties", "maxProperties", "multipleOf", "format", "patternProperties"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength"),
    *("minItems", "maxItems", "allOf", "anyOf", "$ref", "enum", "const", "required"),
    *("additionalProperties", "prefixItems", "items", "properties", "type"),
)
# Without the first, the others would forbid what it allowed.
_TOGETHER = {
    "patternProperties": ("additionalProperties",),
    "properties": ("additionalProperties",),
    "prefixItems": ("items",),
    "anyOf": (),
}


@dataclass(frozen=True)
class Loosened:
    """A schema that a grammar holds, and the rules of the given one that it does not.

    `refused` is the reason why nothing satisfies the schema, or nothing of it could be held; or "".
    """

    schema: Mapping[str, Any]
    left_out: tuple[LeftOut, ...] = ()
    refused: str = ""


def loosened(schema: Mapping[str, Any], caps: Caps) -> Loosened:
    """`schema` as a grammar can hold it; never an error, whatever it holds."""
    return _loosened(json.dumps(schema), caps, arguments=False)


def loosened_arguments(parameters: Any, caps: Caps) -> Loosened:
    """A tool's parameters as a grammar can hold them: always an object."""
    if parameters is None:
        return Loosened({"type": "object", "properties": {}, "additionalProperties": False})
    if not isinstance(parameters, Mapping):
        what = f"a {type(parameters).__name__} in place of a schema"
        return Loosened({"type": "object"}, (LeftOut("", what),))
    return _loosened(json.dumps(parameters), caps, arguments=True)


@lru_cache(maxsize=_KEPT)
def _loosened(text: str, caps: Caps, *, arguments: bool) -> Loosened:
    given = modern(json.loads(text)) if len(text) <= _LARGEST else None
    if given is None or given.nodes > _MOST_NODES:
        bare: dict[str, Any] = {"type": "object"} if arguments else {}
        return Loosened(bare, (LeftOut("", "more than can be held"),), "it is too large")
    left_out = list(given.left_out)
    plain = superset(given, left_out)
    if arguments:
        plain = _as_arguments(plain, left_out)
    made = capped(plain, caps)
    if not _refusal_of(made):
        nothing = left_out and not _says_something(made)
        return Loosened(made, _once(left_out), "nothing of it can be held" if nothing else "")
    reason = _refusal_of(plain)
    if not reason:
        # A cap met a limit that stands elsewhere in the schema.
        return Loosened(plain, _once(left_out))
    made = _Trial(given, plain, made, len(text), left_out).held()
    if arguments:
        made = {**made, "type": "object"}
        if _refusal_of(made):
            left_out.append(LeftOut("", "what no object is"))
            made = {"type": "object"}
    again = capped(made, caps)
    made = made if _refusal_of(again) else again
    refused = reason if reason == UNSATISFIABLE or not _says_something(made) else ""
    return Loosened(made, _once(left_out), refused)


def _refusal_of(schema: Mapping[str, Any]) -> str:
    return refusal(f"%llguidance {{}}\nstart: {json_rule(schema)}\n")


def _once(left_out: list[LeftOut]) -> tuple[LeftOut, ...]:
    return tuple(dict.fromkeys(left_out))


def _as_arguments(plain: dict[str, Any], left_out: list[LeftOut]) -> dict[str, Any]:
    """The schema of arguments as an object; a tool that declares none has none."""
    kinds = plain.get("type", "object")
    if "object" not in ([kinds] if isinstance(kinds, str) else kinds):
        left_out.append(LeftOut("", "type"))
        return {"type": "object"}
    if not plain.get("properties") and not set(plain) - _SAYING_NOTHING and not left_out:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return {**plain, "type": "object"}


def _says_something(schema: Mapping[str, Any]) -> bool:
    said = set(schema) - {"$defs"}
    if said == {"$ref"}:
        return not str(schema["$ref"]).startswith("#/$defs/mlx-any-")
    return bool(said)


class _Trial:
    """Finds the parts of a schema that are refused, by trying them one by one and in halves."""

    def __init__(
        self,
        given: Modern,
        plain: Mapping[str, Any],
        made: Mapping[str, Any],
        size: int,
        left_out: list[LeftOut],
    ) -> None:
        self._pointers, self._left_out = given.pointers, left_out
        self._left = min(_MOST_TRIALS, 20 + _MOST_TRIED // max(size, 1))
        self._plain, self._made = plain, made
        self._wanted: Mapping[str, Any] = made.get("$defs", {})
        # A part that was not tried yet may be anything.
        self._definitions: dict[str, Any] = {
            name: {} if name in self._pointers else one for name, one in self._wanted.items()
        }

    def held(self) -> dict[str, Any]:
        """The schema without its refused parts; of one that takes too much work, its type alone."""
        known = len(self._left_out)
        plain = self._plain.get("$defs", {})
        for name in used_definitions(self._made, self._wanted):
            if name in self._pointers:
                pointer = self._pointers[name]
                made = self._mended(self._wanted[name], plain.get(name), pointer)
                self._definitions[name] = made
                if self._refusal({"$ref": f"#/$defs/{name}"}) not in ("", UNSATISFIABLE):
                    self._leave(pointer, "recursion")
                    self._definitions[name] = {}
        root = {key: value for key, value in self._made.items() if key != "$defs"}
        root = self._mended(root, self._plain, "")
        if self._left <= 0:
            del self._left_out[known:]
            self._leave("", "more than can be held")
            kind = self._plain.get("type")
            return {"type": kind} if kind is not None else {}
        return {**root, "$defs": self._definitions} if self._definitions else root

    def _leave(self, pointer: str, keyword: str) -> None:
        self._left_out.append(LeftOut(pointer, keyword))

    def _refusal(self, node: Any) -> str:
        if self._left <= 0:
            return "too much work"
        self._left -= 1
        schema = node if isinstance(node, Mapping) else ({} if node else {"enum": []})
        whole = {**schema, "$defs": self._definitions}
        return _refusal_of(whole)

    def _mended(self, node: Any, plain: Any, pointer: str) -> Any:
        """The schema, its parts mended first, then without as few keywords as possible."""
        if not self._refusal(node):
            return node
        if not isinstance(node, Mapping):
            self._leave(pointer, "what nothing satisfies")
            return {}
        plain = plain if isinstance(plain, Mapping) else {}
        made = self._with_parts_mended(node, plain, pointer)
        if made != node and not self._refusal(made):
            return made
        capless = {key: value for key, value in made.items() if key in plain}
        if len(capless) < len(made) and not self._refusal(capless):
            return capless
        if "oneOf" in made:
            made = _with_any_of(made)
            self._leave(pointer, "oneOf")
        return self._without_keywords(made, pointer)

    def _with_parts_mended(
        self, node: Mapping[str, Any], plain: Mapping[str, Any], pointer: str
    ) -> dict[str, Any]:
        made = dict(node)
        for key in ("properties", "patternProperties"):
            if key in made:
                before = plain.get(key, {})
                required = made.get("required", ()) if key == "properties" else ()
                made[key] = self._map(key, made[key], before, required, f"{pointer}/{key}")
        for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
            if key in made:
                made[key] = self._branches(key, made[key], plain.get(key), f"{pointer}/{key}")
        for key in ("additionalProperties", "items"):
            if isinstance(made.get(key), Mapping):
                made[key] = self._mended(made[key], plain.get(key), f"{pointer}/{key}")
        return made

    def _map(
        self,
        key: str,
        declared: Mapping[str, Any],
        plain: Mapping[str, Any],
        required: Any,
        pointer: str,
    ) -> dict[str, Any]:
        """Declared properties, tried in halves: mostly a single one is odd."""
        names = list(declared)
        wanted = [name for name in required if name in declared]
        part = {"type": "object", key: dict(declared)}
        if not self._refusal({**part, "required": wanted} if wanted else part):
            return dict(declared)
        if len(names) == 1:
            (name,) = names
            one = self._mended(declared[name], plain.get(name), f"{pointer}/{escaped(name)}")
            return {name: one}
        halves = (names[: len(names) // 2], names[len(names) // 2 :])
        made: dict[str, Any] = {}
        for half in halves:
            some = {name: declared[name] for name in half}
            made |= self._map(key, some, plain, required, pointer)
        return made

    def _branches(self, key: str, branches: list[Any], plain: Any, pointer: str) -> list[Any]:
        made = []
        for at, one in enumerate(branches):
            before = plain[at] if isinstance(plain, list) and at < len(plain) else None
            # A branch that nothing satisfies is just not taken.
            if key in ("anyOf", "oneOf") and self._refusal(one) == UNSATISFIABLE:
                made.append(one)
            else:
                made.append(self._mended(one, before, f"{pointer}/{at}"))
        return made

    def _without_keywords(self, made: dict[str, Any], pointer: str) -> dict[str, Any]:
        if not self._refusal(made):
            return made
        present = [key for key in _LEAST_FIRST if key in made]
        for key in present:
            if not self._refusal(_without(made, key)):
                self._leave(pointer, key)
                return _without(made, key)
        for key in present:
            made = _without(made, key)
            self._leave(pointer, key)
            if not self._refusal(made):
                return made
        return {}


def _without(made: Mapping[str, Any], key: str) -> dict[str, Any]:
    gone = (key, *_TOGETHER.get(key, ()))
    return {name: value for name, value in made.items() if name not in gone}


def _with_any_of(made: Mapping[str, Any]) -> dict[str, Any]:
    """`oneOf` as `anyOf`: only a check can tell that no second branch holds."""
    rest = {key: value for key, value in made.items() if key != "oneOf"}
    if "anyOf" not in rest:
        return {**rest, "anyOf": made["oneOf"]}
    return {**rest, "allOf": [*rest.get("allOf", ()), {"anyOf": made["oneOf"]}]}


def used_definitions(root: Any, definitions: Mapping[str, Any]) -> list[str]:
    """The definitions that `root` uses, each before those that refer to it."""
    done: dict[str, None] = {}
    seen: set[str] = set()
    waiting: list[tuple[str, bool]] = [(name, False) for name in _references(root)]
    while waiting:
        name, left = waiting.pop()
        if left:
            done[name] = None
        elif name not in seen and name in definitions:
            seen.add(name)
            waiting.append((name, True))
            waiting += [(inner, False) for inner in _references(definitions[name])]
    return list(done)


def _references(value: Any) -> list[str]:
    found: list[str] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Mapping):
            if isinstance(one.get("$ref"), str):
                found.append(one["$ref"].rpartition("/")[2])
            waiting += [
                inner for key, inner in one.items() if key not in ("$defs", "enum", "const")
            ]
        elif isinstance(one, list):
            waiting += one
    return found
