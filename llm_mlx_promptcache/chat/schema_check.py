"""Checks that a document fits its schema, after the answer: the rules that no grammar could hold.

Schema and document are untrusted: nothing is fetched, steps are counted, and patterns run with a
time limit. Anything that can't be checked within these limits is not called a misfit. jsonschema is
imported on use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from decimal import Context, Decimal
from functools import lru_cache
from typing import Any

from .schema_dialects import LeftOut, Modern, modern
from .schema_references import escaped
from .schema_supersets import holds_pattern

__all__ = ["misfits"]

_MOST_STEPS = 20_000
# Keywords within keywords; each is four of Python's frames. It is not left to Python's own limit,
# which jsonschema's dictionaries, in Rust, answer with a panic that is no Exception.
_DEEPEST = 100
_MOST_TOLD = 3
_LONGEST_TEXT = 100_000
# Seconds: for one pattern on one text, and for all of them in a document.
_PATTERN_TIME = 0.02
_SLOW_PATTERNS = 4
_LARGEST = 1 << 20
# Of a quotient; one with more is not called a misfit.
_DIGITS = Context(prec=400)


def misfits(document: Any, schema: Mapping[str, Any]) -> tuple[LeftOut, ...]:
    """The parts of `schema` that a document breaks, by the schema's places; empty if it fits.

    Names no value of the document: that is the conversation's text.
    """
    text = json.dumps(schema)
    if len(text) > _LARGEST:
        return ()
    given = _modern(text)
    budget = _Budget()
    found: list[LeftOut] = []
    try:
        for error in _validator(given.schema, budget).iter_errors(document):
            found.append(_place(given, list(error.absolute_schema_path)))
            if len(found) == _MOST_TOLD:
                break
    except (_TooMuchError, RecursionError):
        pass
    return tuple(dict.fromkeys(found))


@lru_cache(maxsize=64)
def _modern(text: str) -> Modern:
    return modern(json.loads(text))


class _TooMuchError(Exception):
    """The check needs more work than is allowed."""


@dataclass
class _Budget:
    steps: int = _MOST_STEPS
    slow: int = _SLOW_PATTERNS
    depth: int = 0
    patterns: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Count one keyword's check, and those within it."""
        self.steps -= 1
        if self.steps < 0 or self.depth == _DEEPEST:
            raise _TooMuchError
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def matches(self, pattern: str, text: str) -> bool | None:
        """True if a pattern is found in a text; None if that can't be told in bounded work."""
        import regex

        if pattern not in self.patterns:
            self.patterns[pattern] = None
            if holds_pattern(pattern):
                with suppress(regex.error, RecursionError, OverflowError, ValueError):
                    self.patterns[pattern] = regex.compile(pattern)
        compiled = self.patterns[pattern]
        if compiled is None or len(text) > _LONGEST_TEXT or self.slow <= 0:
            return None
        try:
            return compiled.search(text, timeout=_PATTERN_TIME) is not None
        except TimeoutError:
            self.slow -= 1
            return None


Keyword = Callable[[Any, Any, Any, Mapping[str, Any]], Iterator[Any] | None]


def _validator(schema: Mapping[str, Any], budget: _Budget) -> Any:
    """The validator of jsonschema with our keywords: counted, and with limits for patterns."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend
    from referencing import Registry

    own: dict[str, Keyword] = {
        "pattern": _pattern(budget),
        "patternProperties": _pattern_properties(budget),
        "additionalProperties": _additional_properties(budget),
        "uniqueItems": _unique_items,
        "multipleOf": _multiple_of,
    }
    if "patternProperties" in json.dumps(schema):
        # jsonschema's own would run these patterns without a limit.
        own["unevaluatedProperties"] = _nothing
    keywords: dict[str, Keyword] = {**Draft202012Validator.VALIDATORS, **own}
    counted = {name: _counted(one, budget) for name, one in keywords.items()}
    # An empty registry: there is nowhere to fetch from, whatever a reference says.
    return extend(Draft202012Validator, counted)(dict(schema), registry=Registry())


def _counted(keyword: Keyword, budget: _Budget) -> Keyword:
    def checked(
        validator: Any, value: Any, instance: Any, schema: Mapping[str, Any]
    ) -> Iterator[Any]:
        with budget.step():
            yield from keyword(validator, value, instance, schema) or ()

    return checked


def _nothing(*_: Any) -> Iterator[Any]:
    return iter(())


def _error(what: str) -> Any:
    from jsonschema import ValidationError

    return ValidationError(what)


def _pattern(budget: _Budget) -> Keyword:
    def checked(_: Any, pattern: Any, instance: Any, __: Mapping[str, Any]) -> Iterator[Any]:
        if isinstance(instance, str) and budget.matches(pattern, instance) is False:
            yield _error("the pattern is not found")

    return checked


def _pattern_properties(budget: _Budget) -> Keyword:
    def checked(
        validator: Any, patterns: Any, instance: Any, __: Mapping[str, Any]
    ) -> Iterator[Any]:
        for name, value in instance.items() if isinstance(instance, Mapping) else ():
            for pattern, inner in patterns.items():
                if budget.matches(pattern, name):
                    yield from validator.descend(value, inner, path=name, schema_path=pattern)

    return checked


def _additional_properties(budget: _Budget) -> Keyword:
    def checked(
        validator: Any, inner: Any, instance: Any, schema: Mapping[str, Any]
    ) -> Iterator[Any]:
        patterns = schema.get("patternProperties", {})
        for name, value in instance.items() if isinstance(instance, Mapping) else ():
            declared = name in schema.get("properties", {})
            # If a pattern can't be tried, the name may match it.
            if declared or any(budget.matches(one, name) is not False for one in patterns):
                continue
            if inner is False:
                yield _error("a property that the schema does not have")
            elif isinstance(inner, Mapping):
                yield from validator.descend(value, inner, path=name)

    return checked


def _unique_items(_: Any, unique: Any, instance: Any, __: Mapping[str, Any]) -> Iterator[Any]:
    if unique and isinstance(instance, list):
        texts = [json.dumps(_number_alike(one), sort_keys=True) for one in instance]
        if len(set(texts)) < len(texts):
            yield _error("items are not unique")


def _multiple_of(_: Any, step: Any, instance: Any, __: Mapping[str, Any]) -> Iterator[Any]:
    """Check `multipleOf` in decimals as written: to floats 0.3 is no multiple of 0.1."""
    if isinstance(instance, bool) or not isinstance(instance, (int, float)):
        return
    with suppress(ArithmeticError, ValueError):
        value, unit = Decimal(repr(instance)), Decimal(repr(step))
        if value.is_finite() and _DIGITS.remainder(value, unit):
            yield _error("no multiple of it")


def _number_alike(value: Any) -> Any:
    """1.0 as 1: to JSON Schema they are one number."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _number_alike(one) for key, one in value.items()}
    return [_number_alike(one) for one in value] if isinstance(value, list) else value


def _place(given: Modern, path: list[Any]) -> LeftOut:
    """The place of an error in the given schema, with definitions back where they were."""
    pointer, node = "", given.schema
    for at, step in enumerate(path):
        # References are no steps of jsonschema's paths.
        for _ in range(8):
            if not isinstance(node, Mapping) or step in node or "$ref" not in node:
                break
            name = str(node["$ref"]).rpartition("/")[2]
            pointer, node = given.pointers.get(name, pointer), given.schema["$defs"].get(name, {})
        if at < len(path) - 1:
            pointer = f"{pointer}/{escaped(step)}"
            known = isinstance(node, Mapping) and step in node
            node = node[step] if known or (isinstance(node, list) and isinstance(step, int)) else {}
    return LeftOut(pointer, str(path[-1]) if path else "false")
