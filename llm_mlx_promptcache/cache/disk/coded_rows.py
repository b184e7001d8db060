"""A pack with coded arrays, read as if they were not coded: block by block, by several threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple

from ..span import DamagedSpan

if TYPE_CHECKING:
    from .span_bytes import SpanBytes

_THREADS: Final = 4
_MOST_AT_ONCE: Final = 8  # blocks that are read and not unpacked yet


class ArrayBytes(NamedTuple):
    """One array's bytes in a file: its size unpacked, and the sizes of its blocks there."""

    nbytes: int
    blocks: Sequence[int] = ()  # none where it lies as it is


class _Unpacking(NamedTuple):
    """A block that is being unpacked, and the memory that it was read into."""

    task: Future[None]
    memory: bytearray


class CodedRows:
    """The arrays of a pack in order, as unpacked bytes.

    DamagedSpan if a block is not as it was coded.
    """

    def __init__(self, source: SpanBytes, arrays: Sequence[ArrayBytes]) -> None:
        self._source = source
        self._blocks = _blocks(arrays)
        self._held = memoryview(b"")  # of a block that was asked for in part
        self._plain = 0  # bytes that come next as they are
        # For the next blocks: the system hands out new memory more slowly than it is read into.
        self._spare: list[bytearray] = []

    def read_into(self, buffers: Sequence[memoryview]) -> None:
        """Fill these with the next bytes; they are full when this returns."""
        wanted = deque(b if b.ndim == 1 and b.itemsize == 1 else b.cast("B") for b in buffers)
        with ThreadPoolExecutor(_THREADS, "unpacking") as pool:
            under_way: deque[_Unpacking] = deque()
            try:
                self._fill(wanted, pool, under_way)
            finally:
                while under_way:
                    self._done(under_way.popleft())

    def _fill(
        self, wanted: deque[memoryview], pool: ThreadPoolExecutor, under_way: deque[_Unpacking]
    ) -> None:
        from .coding import decoded_into

        left = sum(buffer.nbytes for buffer in wanted)
        while left:
            if self._held.nbytes or self._plain:
                left -= self._read_some(wanted, left)
                continue
            nbytes, size = next(self._blocks)
            if not size:
                self._plain = nbytes
                continue
            memory = self._read(size, nbytes)
            whole = left >= nbytes
            targets = taken(wanted, nbytes) if whole else [memoryview(bytearray(nbytes))]
            left -= nbytes if whole else 0
            task = pool.submit(decoded_into, memoryview(memory)[:size], targets)
            under_way.append(_Unpacking(task, memory))
            if not whole or len(under_way) > _MOST_AT_ONCE:
                self._done(under_way.popleft() if whole else under_way.pop())
            if not whole:
                self._held = targets[0]

    def _read_some(self, wanted: deque[memoryview], left: int) -> int:
        """Fill from a held block, or with bytes stored plainly; returns the number of bytes."""
        if self._held.nbytes:
            count = min(left, self._held.nbytes)
            for target in taken(wanted, count):
                target[:] = self._held[: target.nbytes]
                self._held = self._held[target.nbytes :]
            return count
        count = min(left, self._plain)
        self._plain -= count
        self._source.read_into(taken(wanted, count))
        return count

    def _read(self, size: int, nbytes: int) -> bytearray:
        """The next block, at the start of memory that `_done` gets back."""
        memory = self._spare.pop() if self._spare else bytearray()
        if len(memory) < size:
            memory = bytearray(max(size, nbytes))
        self._source.read_into([memoryview(memory)[:size]])
        return memory

    def _done(self, unpacking: _Unpacking) -> None:
        from .coding import BadBlock

        try:
            unpacking.task.result()
        except BadBlock as error:
            raise DamagedSpan(f"{self._source.name}: {error}") from None
        self._spare.append(unpacking.memory)


def _blocks(arrays: Sequence[ArrayBytes]) -> Iterator[tuple[int, int]]:
    """The size of each block unpacked, and in the file; 0 if it is stored plainly."""
    from .span_header import BLOCK_BYTES

    for array in arrays:
        if not array.blocks:
            yield array.nbytes, 0
        for number, size in enumerate(array.blocks):
            yield min(BLOCK_BYTES, array.nbytes - number * BLOCK_BYTES), size


def taken(wanted: deque[memoryview], count: int) -> list[memoryview]:
    """Take the first so many bytes off these, and return them."""
    found = []
    while count:
        first = wanted.popleft()
        found.append(first[:count])
        if first.nbytes > count:
            wanted.appendleft(first[count:])
        count -= found[-1].nbytes
    return found
