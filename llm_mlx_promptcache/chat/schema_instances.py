"""Places of a schema that have a finite instance, by a fixpoint over all of them.

A value is finite once all that it must hold is: nothing is at first, and places are checked again
as long as one more is found. A place that could only hold values without end is endless: a grammar
of it would have a model write for ever.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from .schema_dialects import Modern, modern
from .schema_references import escaped
from .schema_words import meant_types

__all__ = ["endless_definitions", "endless_place"]

_BITS = {
    **{kind: 1 << at for at, kind in enumerate(["string", "boolean", "null", "array", "object"])},
    "number": 1 << 5,
    "integer": 1 << 5,
}
_ARRAY, _OBJECT, _ANY = _BITS["array"], _BITS["object"], (1 << 6) - 1
_MAPS = ("properties", "patternProperties")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = ("additionalProperties", "items", "contains")
# Schemas looked at, and characters of one; beyond that a schema is taken to have instances.
_MOST_WORK = 200_000
_LARGEST = 1 << 20
_KEPT = 64


def endless_place(schema: Mapping[str, Any], *, is_arguments: bool = False) -> str | None:
    """The JSON pointer of an endless part in a schema that has no finite instance; else None.

    Arguments are an object, whatever else the schema takes. Schemas that nothing satisfies, endless
    or not, are reported elsewhere.
    """
    text = json.dumps(schema)
    # Nothing holds itself without a reference.
    if len(text) > _LARGEST or not ('"$ref"' in text or 'Ref"' in text):
        return None
    return _endless_place(text, is_arguments=is_arguments)


@lru_cache(maxsize=_KEPT)
def _endless_place(text: str, *, is_arguments: bool) -> str | None:
    nodes = _Subschemas(modern(json.loads(text)))
    wanted = _OBJECT if is_arguments else _ANY
    ending = nodes.settled(0)
    if ending is None or ending[0] & wanted:
        return None
    endless = nodes.settled(_ANY)
    if endless is None or not endless[0] & wanted:
        return None
    return nodes.culprit(ending, endless)


def endless_definitions(given: Mapping[str, Any], pointers: Mapping[str, str]) -> set[str]:
    """The `$defs` of a schema that have no finite instance."""
    nodes = _Subschemas(Modern({"$defs": given}, pointers))
    ending = nodes.settled(0)
    if ending is None:
        return set()
    return {name for name, at in nodes.definitions.items() if not ending[at]}


class _Subschema(NamedTuple):
    """One schema: its place, and by its keywords the numbers of those inside."""

    schema: Any
    pointer: str
    inner: dict[tuple[str, Any], int]

    def rank(self, part: tuple[str, Any]) -> int:
        """The order in which stuck parts are blamed: properties required by name first."""
        key, name = part
        if key == "properties":
            return 0 if name in self.schema.get("required", ()) else 2
        return 1


Kinds = Callable[[int], int]


class _Subschemas:
    """All schemas inside one, by number, the root's 0, and their dependencies."""

    def __init__(self, given: Modern) -> None:
        self._parts: list[_Subschema] = []
        self.definitions: dict[str, int] = {}
        self._add({key: one for key, one in given.schema.items() if key != "$defs"}, "")
        for name, one in given.schema.get("$defs", {}).items():
            self.definitions[name] = self._add(one, given.pointers.get(name, ""))
        self._above: list[list[int]] = [[] for _ in self._parts]
        for number, place in enumerate(self._parts):
            self._refer(place)
            for inner in place.inner.values():
                self._above[inner].append(number)

    def _add(self, schema: Any, pointer: str) -> int:
        number = len(self._parts)
        self._parts.append(_Subschema(schema, pointer, {}))
        for key, name, one in _parts(schema):
            at = f"{pointer}/{key}" + ("" if name is None else f"/{escaped(name)}")
            self._parts[number].inner[key, name] = self._add(one, at)
        return number

    def _refer(self, place: _Subschema) -> None:
        """Follow a reference to its target; one without a target is anything."""
        if isinstance(place.schema, Mapping) and "$ref" in place.schema:
            name = str(place.schema["$ref"]).rpartition("/")[2]
            if name in self.definitions:
                place.inner["$ref", None] = self.definitions[name]

    def settled(self, first: int) -> list[int] | None:
        """The kinds of instances of each place, as bits: of finite ones if `first` is 0.

        With all bits in `first`, of endless ones too. None if that takes too much work.
        """
        kinds, work = [first] * len(self._parts), 0
        # Inner schemas have higher numbers, so they are settled first.
        waiting = set(range(len(self._parts)))
        while waiting:
            for number in sorted(waiting, reverse=True):
                waiting.discard(number)
                work += 1 + len(self._parts[number].inner)
                if work > _MOST_WORK:
                    return None
                found = _kinds_of(self._parts[number], kinds.__getitem__)
                if found != kinds[number]:
                    kinds[number] = found
                    waiting.update(self._above[number])
        return kinds

    def culprit(self, ending: list[int], endless: list[int]) -> str:
        """The place of the first part that must hold a value it is itself part of."""
        number, seen = 0, [0]
        while True:
            place = self._parts[number]
            stuck = [one for one, at in place.inner.items() if not ending[at] and endless[at]]
            if not stuck:
                return place.pointer
            number = place.inner[min(stuck, key=place.rank)]
            if number in seen:
                return self._parts[seen[-1]].pointer
            seen.append(number)


def _parts(schema: Any) -> Iterator[tuple[str, Any, Any]]:
    """The schemas directly inside one: keyword, name or index if there are several, schema."""
    if not isinstance(schema, Mapping):
        return
    for key in _MAPS:
        yield from ((key, name, one) for name, one in schema.get(key, {}).items())
    for key in _LISTS:
        yield from ((key, at, one) for at, one in enumerate(schema.get(key, ())))
    yield from ((key, None, schema[key]) for key in _SINGLE if key in schema)


def _kinds_of(place: _Subschema, kinds: Kinds) -> int:
    """The kinds of instances of a schema, given those of the schemas inside it.

    Keywords that are not read (conditions, names, lengths) take anything: more may end than does.
    """
    schema, inner = place.schema, place.inner
    if not isinstance(schema, Mapping):
        return 0 if schema is False else _ANY
    made = _bits(schema.get("type") or meant_types(schema))
    listed = [*schema.get("enum", ()), *([schema["const"]] if "const" in schema else [])]
    if "enum" in schema or "const" in schema:
        made &= _either(map(_bit_of, listed))
    if ("$ref", None) in inner:
        made &= kinds(inner["$ref", None])
    for (key, _), at in inner.items():
        if key == "allOf":
            made &= kinds(at)
    for word in ("anyOf", "oneOf"):
        branches = [at for (key, _), at in inner.items() if key == word]
        if branches:
            made &= _either(map(kinds, branches))
    if listed:
        return made  # whole values, which end
    if made & _OBJECT and not _has_object(place, kinds):
        made &= ~_OBJECT
    if made & _ARRAY and not _has_array(place, kinds):
        made &= ~_ARRAY
    return made


def _has_object(place: _Subschema, kinds: Kinds) -> bool:
    """True if there is an object with all that is required, and enough properties."""
    schema, inner = place.schema, place.inner
    patterned = any(key == "patternProperties" for key, _ in inner)
    others = (
        kinds(inner["additionalProperties", None])
        if ("additionalProperties", None) in inner
        else _ANY
    )
    for name in schema.get("required", ()):
        at = inner.get(("properties", name))
        if at is not None and not kinds(at):
            return False
        if at is None and not (patterned or others):
            return False
    if patterned or others:
        return True
    possible = sum(bool(kinds(at)) for (key, _), at in inner.items() if key == "properties")
    return bool(possible >= schema.get("minProperties", 0))


def _has_array(place: _Subschema, kinds: Kinds) -> bool:
    """True if there is an array with enough items, and with those it must contain."""
    schema, inner = place.schema, place.inner
    least = schema.get("minItems", 0)
    prefix = len(schema.get("prefixItems", ()))
    if not all(kinds(inner["prefixItems", at]) for at in range(min(least, prefix))):
        return False
    items, contained = inner.get(("items", None)), inner.get(("contains", None))
    if items is not None and least > prefix and not kinds(items):
        return False
    return contained is None or not schema.get("minContains", 1) or bool(kinds(contained))


def _bits(names: str | list[str]) -> int:
    listed = [names] if isinstance(names, str) else names
    return _either(_BITS[name] for name in listed) if listed else _ANY


def _either(kinds: Iterator[int]) -> int:
    made = 0
    for one in kinds:
        made |= one
    return made


def _bit_of(value: Any) -> int:
    """The kind of a plain value."""
    if value is None:
        return _BITS["null"]
    if isinstance(value, bool):
        return _BITS["boolean"]
    if isinstance(value, str):
        return _BITS["string"]
    if isinstance(value, (int, float)):
        return _BITS["number"]
    return _OBJECT if isinstance(value, Mapping) else _ARRAY
