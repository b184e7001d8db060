"""The part of a path to keep, and the rows' way when layers leave the cache or come back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, NamedTuple


class Rows(Enum):
    """The way of rows between the cache and a request's layers.

    A fetch copies or gives; an insert copies, keeps out, or has the layers returned.
    """

    COPY = auto()  # the cache and the layers have their own
    GIVE = auto()  # rows that nobody else needs move out of the cache into the layers
    KEEP_OUT = auto()  # rows that moved out into these layers stay there; the others are copied
    RETURN = auto()  # the layers are given up, array by array, so that nothing is held twice


def check_rows(rows: Rows, *meant: Rows) -> None:
    """Check that these rows fit the call; ValueError."""
    if rows not in meant:
        named = " or ".join(f"Rows.{one.name}" for one in meant)
        raise ValueError(f"rows is {rows!r}; it is {named} here")


class PathEnd(NamedTuple):
    """A token of a path after which a span is to end, under its tier."""

    at: int
    tier: str
    rows: Rows = Rows.COPY


@dataclass(frozen=True)
class Insertion:
    """The part of a path to keep: of `layers` that have seen `at` tokens, at least all of it.

    The store gets it only with `on_disk`.
    """

    layers: Sequence[Any]
    at: int
    tier: str
    rows: Rows = Rows.COPY
    on_disk: bool = True
