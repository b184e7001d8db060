"""Errors that pass between processes: known classes by name, and the text that a user reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..models import errors as ours

_MOST_TEXT: Final = 1 << 20  # characters


class HostLost(RuntimeError):
    """The host went away, or hangs, in the middle of an answer; the message says what to do."""


class HostStopped(RuntimeError):
    """An ask that did not come to its end, since the host was ended."""


# Each of them takes one text and says it.
_KNOWN: Final[dict[str, type[Exception]]] = {
    kind.__name__: kind
    for kind in (
        *(kind for kind in vars(ours).values() if isinstance(kind, type)),
        HostStopped,
        ArithmeticError,
        AssertionError,
        AttributeError,
        FileNotFoundError,
        IndexError,
        LookupError,
        MemoryError,
        NotImplementedError,
        OSError,
        OverflowError,
        PermissionError,
        RecursionError,
        RuntimeError,
        TimeoutError,
        TypeError,
        ValueError,
    )
}


def error_to_json(error: BaseException) -> dict[str, Any]:
    """An error's text, and the nearest of its classes that the other end knows too."""
    kinds = (kind.__name__ for kind in type(error).__mro__ if _KNOWN.get(kind.__name__) is kind)
    return {"kind": next(kinds, RuntimeError.__name__), "text": str(error)[:_MOST_TEXT]}


def error_from_json(data: object) -> Exception:
    """The error that the other end sent; RuntimeError for an unknown class."""
    said: Mapping[str, Any] = data if isinstance(data, Mapping) else {}
    kind = said.get("kind")
    return _KNOWN.get(kind if isinstance(kind, str) else "", RuntimeError)(
        str(said.get("text", ""))[:_MOST_TEXT]
    )
