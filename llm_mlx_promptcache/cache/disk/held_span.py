"""A span in memory, read as its file would be: what is packed need not be written first."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ..span import DamagedSpan, Head, StoredTensor, Tensor
from .tensor_places import BY_NAME


class HeldSpan:
    """A span's arrays as bytes of the host, given once each, in the order of a file.

    It is what it is: `verify` has nothing to find.
    """

    def __init__(self, file_id: str, head: Head, tensors: Sequence[Tensor]) -> None:
        self.name = "a span in memory"
        self.broken: DamagedSpan | None = None
        self.coded = False
        self.head = head
        self.heads = {file_id: head}
        self._left = deque(tensor.raw for tensor in tensors)
        self._entries = {tensor.name: _entry(tensor) for tensor in tensors}

    def entries(self, layer: int) -> list[StoredTensor | None]:
        """The arrays of a layer; None for missing ones."""
        arity = self.head.layout[layer].arity
        return [self._entries.get(f"layer.{layer}.{index}") for index in range(arity)]

    def read_into(self, buffers: Sequence[memoryview]) -> None:
        """Fill these with the next bytes."""
        for buffer in buffers:
            rest = buffer
            while rest.nbytes:
                first = self._left.popleft()
                count = min(first.nbytes, rest.nbytes)
                rest[:count] = first[:count]
                rest = rest[count:]
                if first.nbytes > count:
                    self._left.appendleft(first[count:])

    def verify(self) -> None:
        """Find nothing: memory needs no digest."""

    def pause(self) -> None:
        """Do nothing: there is no descriptor."""

    def close(self) -> None:
        """Do nothing: there is no file."""


def _entry(tensor: Tensor) -> StoredTensor:
    return StoredTensor(BY_NAME[tensor.dtype], tensor.shape, 0, tensor.raw.nbytes)
