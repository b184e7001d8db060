"""Many tools at once: the schemas that one grammar holds together, the small ones first.

The grammar engine's work grows with all schemas, in time and memory, and has a limit; a few
connected servers have hundreds of tools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["BUDGETS", "ToolSet", "within"]

# Parts of all schemas together: the engine takes about a second for 50,000, and refuses some
# sets of 80,000. Where a set is refused (patterns may be worth thousands) fewer are tried.
BUDGETS = (40_000, 8_000, 0)
_ANY: Mapping[str, Any] = {"type": "object", "additionalProperties": {}}


class ToolSet(NamedTuple):
    """Tools as one grammar can hold them together, and the names of those whose schema it can't."""

    functions: tuple[Mapping[str, Any], ...]
    unheld: tuple[str, ...]


def within(functions: Sequence[Mapping[str, Any]], budget: int) -> ToolSet:
    """Tools whose schemas have `budget` parts together; of the others any object is taken.

    Tools without arguments cost nothing.
    """
    sizes = [_parts(one.get("parameters"), budget) for one in functions]
    left, held = budget, set()
    for at in sorted(range(len(sizes)), key=lambda at: sizes[at]):
        left -= sizes[at]
        if left >= 0:
            held.add(at)
    made = [one if at in held else {**one, "parameters": _ANY} for at, one in enumerate(functions)]
    unheld = [str(one["name"]) for at, one in enumerate(functions) if at not in held]
    return ToolSet(tuple(made), tuple(unheld))


def _parts(schema: Any, most: int) -> int:
    """The number of objects and listed values in a schema; counted no further than past `most`."""
    count, waiting = 0, [schema]
    while waiting and count <= most:
        one = waiting.pop()
        if isinstance(one, Mapping):
            count += 1
            waiting += one.values()
        elif isinstance(one, (list, tuple)):
            count += len(one)
            waiting += [inner for inner in one if isinstance(inner, (Mapping, list, tuple))]
    return count
