"""Targets of references in a JSON Schema: places inside that schema, and nothing anywhere else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

_MOST = 50_000
_DEFINITIONS = ("$defs", "definitions")


class Target(NamedTuple):
    """A schema that is referred to, and its JSON pointer."""

    pointer: str
    schema: Any


class References:
    """Finds the targets of references; the schema is walked once, in bounded work."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._pointers: dict[int, str] = {}
        self._around: dict[int, Any] = {}
        self._anchors: dict[str, list[Any]] = {}
        self._names: dict[str, Any] = {}
        self._walk()

    def _walk(self) -> None:
        waiting: list[tuple[str, Any, Any]] = [("", self._root, None)]
        for _ in range(_MOST):
            if not waiting:
                return
            pointer, value, around = waiting.pop()
            if id(value) in self._pointers:
                continue
            self._pointers[id(value)], self._around[id(value)] = pointer, around
            if isinstance(value, Mapping):
                self._name(value)
                pairs: Any = value.items()
            else:
                pairs = enumerate(value)
            inner = [(key, one) for key, one in pairs if isinstance(one, (Mapping, list, tuple))]
            waiting += [(f"{pointer}/{escaped(key)}", one, value) for key, one in inner]

    def _name(self, schema: Mapping[str, Any]) -> None:
        for key in ("$anchor", "$dynamicAnchor", "$id", "id"):
            name = schema.get(key)
            if not isinstance(name, str) or not name:
                continue
            if key.endswith("id") and not name.startswith("#"):
                self._names.setdefault(name.rstrip("#"), schema)
            else:
                self._anchors.setdefault(name.removeprefix("#"), []).append(schema)

    def target(self, reference: str, source: Mapping[str, Any]) -> Target | None:
        """The target of `reference` in `source`; None if it is not in the schema."""
        base, _, fragment = reference.partition("#")
        fragment = unquote(fragment)
        scopes = self._scopes(source)
        if base:
            owner = self._names.get(base) or self._names.get(self._relative(base))
            if owner is None:
                return None if "/" in base else self._defined(base)
            scopes = [owner]
        if not fragment:
            return self._at(scopes[0] if base else self._root)
        if fragment[:1] != "/":
            return self._at(next(iter(self._anchors.get(fragment, [])), None))
        # The root's first; some put definitions beside the reference to them.
        found = (under(scope, fragment) for scope in scopes)
        return self._at(next((one for one in found if one is not None), None), fragment)

    def _relative(self, base: str) -> str:
        """An absolute address as the schema's own names have it, relative to the root's."""
        root = next((str(self._root[key]) for key in ("$id", "id") if self._root.get(key)), "")
        folder = root.rpartition("/")[0]
        return base.removeprefix(f"{folder}/") if folder else base

    def _scopes(self, source: Mapping[str, Any]) -> list[Any]:
        """The root, then the schemas around a place from the nearest on."""
        return [self._root, *self._outwards(source)]

    def _outwards(self, source: Any) -> Iterator[Any]:
        while source is not None and source is not self._root:
            yield source
            source = self._around.get(id(source))

    def _defined(self, name: str) -> Target | None:
        """The definition with this bare name."""
        found = (under(self._root, f"/{key}/{escaped(name)}") for key in _DEFINITIONS)
        return self._at(next((one for one in found if one is not None), None), name)

    def _at(self, schema: Any, otherwise: str = "") -> Target | None:
        if schema is None:
            return None
        if isinstance(schema, bool):
            return Target(otherwise, schema)
        pointer = self._pointers.get(id(schema))
        return None if pointer is None else Target(pointer, schema)


def under(schema: Any, pointer: str) -> Any:
    """The schema at a JSON pointer; None if nothing there could be a schema."""
    found = schema
    for token in pointer[1:].split("/"):
        token = token.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping):
            found = found.get(token)
        elif isinstance(found, (list, tuple)) and token.isdecimal() and len(token) < 7:
            found = found[int(token)] if int(token) < len(found) else None
        else:
            return None
    return found if isinstance(found, (Mapping, bool)) else None


def escaped(name: object) -> str:
    """A name as a token of a JSON pointer."""
    return str(name).replace("~", "~0").replace("/", "~1")
