"""A file with its ends behind its rows, read as if all lay layer by layer, or as if it had none."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..span import StoredTensor
from .coded_rows import taken

if TYPE_CHECKING:
    from .span_bytes import SpanBytes

Entries = list[list[StoredTensor | None]]  # of each layer


class _PartedRun(NamedTuple):
    """Bytes that lie together in a file, among its rows or its ends."""

    nbytes: int
    ends: bool


class PartedRows:
    """The arrays of a file in the order of its layers; `entries` are their places in that order."""

    def __init__(self, source: SpanBytes, stored: Entries, begin: int, ends_begin: int) -> None:
        self._source = source
        self._runs: deque[_PartedRun] = deque()
        self.entries: Entries = []
        at = begin
        for layer in stored:
            row: list[StoredTensor | None] = []
            for entry in layer:
                if entry is not None:
                    self._add(entry.end - entry.begin, ends=entry.begin >= ends_begin)
                    entry = _moved(entry, at)
                    at = entry.end
                row.append(entry)
            self.entries.append(row)

    def read_into(self, buffers: Sequence[memoryview]) -> None:
        """Fill these with the next bytes."""
        wanted = deque(b if b.ndim == 1 and b.itemsize == 1 else b.cast("B") for b in buffers)
        left = sum(buffer.nbytes for buffer in wanted)
        while left:
            nbytes, ends = self._runs.popleft()
            count = min(left, nbytes)
            if nbytes > count:
                self._runs.appendleft(_PartedRun(nbytes - count, ends))
            self._source.read_into(taken(wanted, count), ends=ends)
            left -= count

    def _add(self, nbytes: int, *, ends: bool) -> None:
        if self._runs and self._runs[-1].ends == ends:
            nbytes += self._runs.pop().nbytes
        self._runs.append(_PartedRun(nbytes, ends))


def without_ends(stored: Entries, ends_begin: int) -> Entries:
    """The places of a file's rows alone, which follow each other."""
    return [[e if e is None or e.begin < ends_begin else None for e in row] for row in stored]


def _moved(entry: StoredTensor, begin: int) -> StoredTensor:
    return entry._replace(begin=begin, end=begin + entry.end - entry.begin)
