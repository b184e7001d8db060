"""Jinja's filters, tests and functions, with the cost of each counted before it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, Final

from .template_work import NODE, Work, by_rank, replaced, spelled_widths

# A text in pieces, which may be of one letter each, for each of its letters.
_PIECE: Final = 16

Meter = Callable[[], Work]

# Their results are as long as their inputs, or lazy.
_LAZY: Final = frozenset(
    {"attr", "default", "d", "first", "last", "length", "count", "items", "map", "select"}
    | {"reject", "selectattr", "rejectattr", "safe", "random"}
)
_CHOOSE: Final = frozenset({"map", "select", "reject", "selectattr", "rejectattr"})
_LISTS: Final = frozenset({"list", "batch", "slice", "reverse"})
# They sort, compare, or add up all their items.
_GATHER: Final = frozenset({"join", "sum", "sort", "unique", "groupby", "min", "max", "dictsort"})
# Their patterns go over a text again and again.
_SLOW: Final = frozenset({"urlize", "wordwrap", "striptags", "pprint", "xmlattr"})
_COMPARE: Final = frozenset(
    {"==", "eq", "equalto", "!=", "ne", "<", "lt", "lessthan", "<=", "le", ">", "gt"}
    | {"greaterthan", ">=", "ge", "in", "lower", "upper"}
)


def measured(meter: Meter, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that counts its work first; `meter` returns the work of the current rendering."""
    # Jinja hands some filters its own state before the value.
    own = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        work = meter()
        if name in _GATHER and len(args) > own and isinstance(args[own], Iterator):
            args = (*args[:own], list(args[own]), *args[own + 1 :])
        elif name in _CHOOSE and len(args) > own and args[own] and hasattr(args[own], "__iter__"):
            # Rejected items never come out, so all are counted on their way in.
            args = (*args[:own], work.counted(args[own]), *args[own + 1 :])
        if len(args) > own:
            _charge(work, name, args[own], args[own + 1 :], kwargs)
        return work.result(function(*args, **kwargs))

    return call


def measured_test(meter: Meter, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A test that counts its comparisons; tests that look at a type alone stay as they are."""
    if name not in _COMPARE:
        return function

    @wraps(function)
    def call(value: Any, *args: Any) -> Any:
        work = meter()
        cost = sought if name == "in" else compared
        work.spend(NODE // 4 + sum(cost(work, one) for one in (args or (value,))))
        return function(value, *args)

    return call


def compared(work: Work, value: Any) -> int:
    """The most that comparing with a value may cost."""
    if isinstance(value, str):
        return 1 + (len(value) >> 3)
    return work.weigh(value)


def sought(work: Work, value: Any) -> int:
    """The most that searching in a value may cost: in a dict next to nothing."""
    return 1 if isinstance(value, dict) else compared(work, value)


def _charge(
    work: Work, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    given = (*args, *kwargs.values())
    if name in _LAZY:
        work.spend(NODE * (1 + len(given)) + _texts(given))
        return
    if name in _LISTS:
        work.spend(NODE * (_count(value) + _widths(given) + 1))
        return
    weight = work.weigh(value)
    if not isinstance(value, str):
        weight *= 4  # as Python writes it
    work.spend(weight + sum(work.weigh(one) for one in given))
    work.spend(_beyond(work, name, value, weight, args, kwargs))


def _beyond(
    work: Work,
    name: str,
    value: Any,
    weight: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> int:
    """The size of a filter's result beyond its value and its arguments."""
    given = (*args, *kwargs.values())
    widths, texts, count = _widths(given), _texts(given), _count(value)
    match name:
        case "center" | "truncate" | "round" | "wordwrap" if widths > 1 << 12:
            return NODE * widths
        case "center":
            return widths
        case "indent":
            lines = value.count("\n") + 1 if isinstance(value, str) else weight
            return lines * (4 + widths + texts)
        case "tojson":
            return _as_json(work, weight, given)
        case "replace":
            if isinstance(value, str) and not kwargs:
                return replaced(value, *args)
            return (weight + 1) * texts
        case "trim":
            return weight * texts
        case "join":
            return count * (texts + 1)
        case "format":
            if not isinstance(value, str):
                return widths
            return spelled_widths(value) + widths + value.count("%(") * texts
        case "title" | "wordcount":
            return _PIECE * weight
        case "sum":
            return count * weight if any(not isinstance(one, int) for one in args) else 0
        case _ if name in _GATHER:
            return (weight + count * texts) * by_rank(count)
        case _ if name in _SLOW:
            return weight * (weight >> 6) + NODE * widths
    return 0


def _as_json(work: Work, weight: int, given: tuple[Any, ...]) -> int:
    """The size of JSON beyond the value: each entry has separators of its own, and an indent."""
    pairs = (pair for pair in given if isinstance(pair, tuple | list))
    separators = sum(work.weigh(one) - 1 for pair in pairs for one in pair)
    entries = weight // NODE + 1
    return weight * _texts(given) + entries * (separators + NODE * _widths(given))


def _widths(given: tuple[Any, ...]) -> int:
    return sum(abs(one) for one in given if isinstance(one, int))


def _texts(given: tuple[Any, ...]) -> int:
    return sum(len(one) for one in given if isinstance(one, str))


def _count(value: Any) -> int:
    try:
        return len(value)
    except TypeError:
        return 0
