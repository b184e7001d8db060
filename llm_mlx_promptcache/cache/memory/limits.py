"""Limits of memory: bytes, spans and buffers of the device."""

from __future__ import annotations

from typing import NamedTuple

from ..sizes import parse_size


class Limits(NamedTuple):
    """The most bytes and, if not None, spans and buffers that may be in memory."""

    nbytes: int
    spans: int | None = None
    buffers: int | None = None

    @classmethod
    def checked(cls, memory_bytes: int | str, spans: int | None) -> Limits:
        """Limits as a user writes them; ValueError for invalid ones."""
        nbytes = parse_size(memory_bytes, "memory_bytes")
        number = isinstance(spans, int) and not isinstance(spans, bool) and spans >= 0
        if spans is not None and not number:
            raise ValueError(f"spans is {spans!r}; give a number of spans, or None for any")
        return cls(nbytes, spans)

    def passed(self, held: Limits) -> bool:
        """True if this is more than the limits."""
        pairs = zip(held, self, strict=True)
        return any(most is not None and (number or 0) > most for number, most in pairs)
