"""Properties that a schema's conditions declare of the object itself: if, then, else and the like.

No grammar holds a condition, and an object is closed to keys that nobody named (`schema_caps.py`):
so properties that only a condition names are found here, to stand beside the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from .schema_references import escaped

__all__ = ["Conditions", "Named"]

_WHOLE = ("then", "else", "dependentSchemas")
_INSIDE = ("allOf", "anyOf", "oneOf")
_DEEPEST = 6
# Of all schemas of one request, since references lead to the same ones again and again.
_MOST_PARTS = 5_000
_MOST_NAMES = 20_000


class Named(NamedTuple):
    """A property, and its schema with its place; None if it has only a name."""

    name: str
    schema: Any = None
    pointer: str = ""


class Conditions:
    """Finds the properties that conditions name; `resolve` follows references."""

    def __init__(self, resolve: Callable[[Any], Any]) -> None:
        self._resolve = resolve
        self._parts, self._names = _MOST_PARTS, _MOST_NAMES

    def named(self, node: Mapping[str, Any], pointer: str) -> Iterator[Named]:
        """Each property of each condition, as often as it is declared."""
        for one in self._named(node, pointer):
            if self._names <= 0:
                return
            self._names -= 1
            yield one

    def _named(self, node: Mapping[str, Any], pointer: str) -> Iterator[Named]:
        seen: set[int] = set()
        for at, part in self._within(node, pointer, 0, seen):
            for name, one in part.get("properties", {}).items():
                yield Named(name, one, f"{at}/properties/{escaped(name)}")
            yield from map(Named, part.get("required", ()))
            for names in part.get("dependentRequired", {}).values():
                yield from map(Named, names)
            tested = self._resolve(part.get("if"))
            if isinstance(tested, Mapping):
                # A property's rules there hold only if the condition does.
                yield from map(Named, [*tested.get("properties", {}), *tested.get("required", ())])

    def _within(
        self, node: Mapping[str, Any], pointer: str, depth: int, seen: set[int]
    ) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The schema itself, its conditions, and the schemas inside them."""
        own = node if depth else {key: node.get(key, {}) for key in ("if", "dependentRequired")}
        yield pointer, own
        for key in (*_WHOLE, *(_INSIDE if depth else ())) if depth < _DEEPEST else ():
            for at, one in _each(node.get(key), f"{pointer}/{key}"):
                part = self._resolve(one)
                if isinstance(part, Mapping) and id(part) not in seen and self._parts > 0:
                    self._parts -= 1
                    seen.add(id(part))
                    yield from self._within(part, at, depth + 1, seen)


def _each(value: Any, pointer: str) -> list[tuple[str, Any]]:
    """The schemas of a keyword that has one, a list of them or one for each name."""
    if isinstance(value, list):
        return [(f"{pointer}/{at}", one) for at, one in enumerate(value)]
    if pointer.endswith("/dependentSchemas") and isinstance(value, Mapping):
        return [(f"{pointer}/{escaped(name)}", one) for name, one in value.items()]
    return [(pointer, value)]
