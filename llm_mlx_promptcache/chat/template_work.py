"""The work of rendering a chat template, counted in letters before it is done."""

from __future__ import annotations

import math
import re
from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from typing import Any, Final

NODE: Final = 64  # a list's entry, or one step of a template, in letters
# A rendering's limits. Of 786 real templates the dearest needs 340 for each pair of messages
# (it looks through all of them at each), and 3 % of the rest.
LEAST: Final = 16_000_000
A_LETTER: Final = 60  # of the input, each
A_PAIR: Final = 1_024  # of messages, each
# Some add each tool to the text of all tools before it: of the input, for each tool, one letter in
ADDED: Final = 2
_BITS: Final = 1 << 14  # of a whole number
_DEPTH: Final = 1_000  # of values in values: Python hashes and frees them on its own stack
_NUMBER = re.compile(r"\d{1,20}")
# Of these no argument is a width.
_NO_WIDTHS: Final = frozenset(
    {
        "split",
        "rsplit",
        "find",
        "rfind",
        "index",
        "rindex",
        "count",
        "startswith",
        "endswith",
        "get",
    }
)
_WALKED: Final = (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)
_SHALLOW: Final = frozenset({"get", "keys", "values", "items", "copy"})
# Python searches from the end, and for each of some letters, without a table.
_SLOW: Final = frozenset({"strip", "lstrip", "rstrip", "rfind", "rindex", "rpartition"})
_PIECES: Final = frozenset({"split", "rsplit", "splitlines"})


class TemplateError(ValueError):
    """The chat template refused the conversation itself."""


class TooMuchWork(TemplateError):
    """A chat template needs more work than any honest one does."""


class Work:
    """The work that is left to one rendering."""

    def __init__(self, most: int) -> None:
        self.left = most

    def spend(self, units: int) -> None:
        """Count work that is about to be done; TooMuchWork if there is none left."""
        self.left -= units
        if self.left < 0:
            raise TooMuchWork

    def weigh(self, value: Any) -> int:
        """The letters and entries of a value, its whole tree; TooMuchWork if it has no end.

        Values counted while they are taken (iterators) or shown by their name alone weigh nothing.
        """
        kind = type(value)
        if kind is str:
            return len(value)
        if kind is bool or value is None:
            return 1
        found, depth, level = 0, 0, [value]
        while level:
            deeper: list[Any] = []
            for one in level:
                if isinstance(one, str | bytes):
                    found += len(one)
                elif isinstance(one, dict):
                    found += NODE * len(one)
                    deeper += one.keys()
                    deeper += one.values()
                elif isinstance(one, _WALKED):
                    found += NODE * len(one)
                    deeper += one
                elif isinstance(one, range):
                    found += NODE * len(one)
                else:
                    found += _bits(one) >> 3
                if found > self.left:
                    raise TooMuchWork
            depth, level = depth + 1, deeper
            if depth > _DEPTH:
                raise TooMuchWork
        return found + 1

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """The same items, each counted as it is taken."""
        return _Counted(self, iter(items))

    def result(self, value: Any) -> Any:
        """The result of a call: counted, or to be counted as its items are taken."""
        if isinstance(value, str | bytes):
            self.spend(len(value))
        elif isinstance(value, list | tuple | dict):
            self.spend(NODE * len(value))
        elif type(value) is int:
            if _bits(value) > _BITS:
                raise TooMuchWork
        elif isinstance(value, Iterator):
            return self.counted(value)
        return value

    def operate(self, sign: str, left: Any, right: Any) -> None:
        """Count the result of `left sign right`."""
        if sign == "%" and isinstance(left, str | bytes):
            name = "%(" if isinstance(left, str) else b"%("
            named = left.count(name) if isinstance(right, dict) else 0  # type: ignore[arg-type]
            self.spend(4 * (1 + named) * self.weigh(right) + self._padded(left, right))
        elif sign == "*":
            self._multiply(left, right)
        elif sign == "**":
            if type(left) is int and isinstance(right, int):
                self.result(0 if right <= 0 else 1 << min(_bits(left) * right, 1 << 15))
        else:
            self.spend(_length(left) + _length(right))

    def _multiply(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            if _bits(left) + _bits(right) > _BITS:
                raise TooMuchWork
        elif isinstance(left, int):
            self.spend(_length(right) * max(0, left))
        elif isinstance(right, int):
            self.spend(_length(left) * max(0, right))

    def _padded(self, form: str | bytes, values: Any) -> int:
        text = form if isinstance(form, str) else form.decode("latin-1")
        stars = _widths([values] if not isinstance(values, tuple) else values) if "*" in text else 0
        return len(text) + spelled_widths(text) + stars

    def call_method(self, name: str, on: Any, args: Iterable[Any]) -> None:
        """Count the result of a built-in value's method, before it is called."""
        args = tuple(args)
        if isinstance(on, dict) and name in _SHALLOW:
            self.spend(NODE + sum(self.weigh(arg) for arg in args))
            return
        weight = self.weigh(on) + sum(self.weigh(arg) for arg in args)
        if name not in _NO_WIDTHS:
            weight += _widths(args)
        if isinstance(on, str | bytes):
            weight += self._of_text(name, on, args)
        self.spend(weight)

    def _of_text(self, name: str, on: Any, args: tuple[Any, ...]) -> int:
        """The size of a text method's result beyond the text and its arguments."""
        if name in _PIECES:
            sep = args[0] if args and isinstance(args[0], str | bytes) and args[0] else None
            pieces = NODE * int(on.count(sep) if sep is not None else len(on) // 2)
            return pieces + (len(on) * len(sep) if sep is not None and name == "rsplit" else 0)
        if name == "replace":
            return replaced(on, *args[:2])
        if name == "join":
            return sum(len(on) * _count(arg) for arg in args)
        if name in _SLOW and args and isinstance(args[0], str | bytes):
            return len(on) * len(args[0])  # each letter is looked for, or each place looked at
        if name == "expandtabs":
            return _count(on) * max(8, _widths(args))
        if name == "translate":
            return len(on) * sum(self.weigh(arg) for arg in args)
        return 0


class _Counted(Iterator[Any]):
    """Items that are counted as they are taken.

    Not a generator: templates put iterators into iterators, and Python frees nested generators all
    at once, each on top of the last one's stack.
    """

    __slots__ = ("_items", "_work")

    def __init__(self, work: Work, items: Iterator[Any]) -> None:
        self._work = work
        self._items = items

    def __next__(self) -> Any:
        item = next(self._items)
        self._work.spend(NODE + (len(item) if isinstance(item, str) else 0))
        return item


# Errors of misuse read as for Jinja's own generators.
_Counted.__name__ = _Counted.__qualname__ = "generator"


def replaced(text: Any, old: Any = "", new: Any = "", *_: Any) -> int:
    """The letters that `text.replace(old, new)` adds."""
    try:
        return int(text.count(old)) * len(new)
    except TypeError:
        return 0  # nor can it be replaced


def spelled_widths(form: str) -> int:
    """The sum of the numbers in a format, each of which may be a width."""
    return sum(map(int, _NUMBER.findall(form)))


def _widths(values: Iterable[Any]) -> int:
    return sum(abs(value) for value in values if isinstance(value, int))


def _count(value: Any) -> int:
    try:
        return len(value)
    except TypeError:
        return 0


def _length(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, list | tuple):
        return NODE * len(value)
    return 1


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def by_rank(count: int) -> int:
    """The factor for sorting so many items."""
    return 2 + int(math.log2(count + 1))
