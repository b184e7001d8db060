"""Ends: what a span holds only so that a path can resume near its end: states and windows.

A file keeps them behind its rows, so that a path which goes on past them need not read them.
"""

from __future__ import annotations

from .kinds import LayerKind, ListOf, State, Window
from .layout import Layout, PathPart
from .own_state import OwnState


def ends_in(kind: LayerKind) -> tuple[bool, ...]:
    """For each array of a kind's pieces, whether it is of an end."""
    if isinstance(kind, ListOf):
        return tuple(each for part in kind.parts for each in ends_in(part))
    return (not kind.anywhere,) * kind.arity


def has_ends(layout: Layout) -> bool:
    """True if spans of such layers hold anything but rows."""
    return any(any(ends_in(kind)) for kind in dict.fromkeys(layout))


def needs_ends(layout: Layout, part: PathPart, count: int) -> bool:
    """True if layers at token `count` of a path are made from the ends of this part of it."""
    return any(_needs(kind, part, count) for kind in dict.fromkeys(layout))


def reach_back(layout: Layout) -> int:
    """The most tokens before a place whose ends layers there are made from; 0 without windows."""
    return max(map(_reach, dict.fromkeys(layout)), default=0)


def _reach(kind: LayerKind) -> int:
    if isinstance(kind, ListOf):
        return reach_back(kind.parts)
    return kind.size if isinstance(kind, Window) else 0


def _needs(kind: LayerKind, part: PathPart, count: int) -> bool:
    if isinstance(kind, ListOf):
        return any(_needs(each, part, count) for each in kind.parts)
    if kind.anywhere:
        return False
    # A kind of a plugin may join in another way: it is given all.
    join = type(kind).join
    if join in (State.join, OwnState.join):
        return part.end == count == part.span_end
    if isinstance(kind, Window) and join is Window.join:
        return part.start < count and part.end > count - kind.size
    return True
