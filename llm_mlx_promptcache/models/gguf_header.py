"""The header of a GGUF file, read before MLX is given the file; imports no MLX.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The file is untrusted: the
lengths it states are checked against its size, and no more than a model's header has is read.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO, Any, NamedTuple

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MOST_VALUES, _MOST_TENSORS = 10_000, 100_000
_MOST_ITEMS = 4_000_000  # of all arrays of texts together; the largest vocabularies have 300,000
_MOST_TEXT = 1 << 24  # bytes of one text, which may be a chat template
_MOST_DIMENSIONS = 4
_ALIGNMENT = 32

_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_TEXT, _ARRAY = 8, 9


class Packing(NamedTuple):
    """The packing of a kind of tensor: the values of a block, and the bits they take."""

    name: str
    values: int
    bytes: int


# Those that MLX reads, through https://github.com/antirez/gguf-tools.
PACKINGS = {
    0: Packing("F32", 1, 4),
    1: Packing("F16", 1, 2),
    2: Packing("Q4_0", 32, 18),
    3: Packing("Q4_1", 32, 20),
    8: Packing("Q8_0", 32, 34),
    10: Packing("Q2_K", 256, 84),
    12: Packing("Q4_K", 256, 144),
    14: Packing("Q6_K", 256, 210),
    30: Packing("BF16", 1, 2),
}
_OTHERS = {
    6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 11: "Q3_K", 13: "Q5_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


class GGUFTensor(NamedTuple):
    """A tensor of the file: its dimensions as GGUF has them, and the number of its kind."""

    name: str
    dimensions: tuple[int, ...]
    kind: int

    @property
    def values(self) -> int:
        """The number of values in it."""
        count = 1
        for size in self.dimensions:
            count *= size
        return count


class GGUFHeader(NamedTuple):
    """The file's values by their keys (of an array its length), and its tensors."""

    values: dict[str, Any]
    tensors: tuple[GGUFTensor, ...]


def read_header(path: Path) -> GGUFHeader:
    """Read the header of a GGUF file; ValueError if it is none, is cut, or can't be read.

    Each tensor is of a kind that MLX reads, and lies inside the file.
    """
    try:
        with path.open("rb") as file:
            return _HeaderReader(file, path.stat().st_size).header()
    except (OSError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"it can't be read: {error}") from error


class _HeaderReader:
    """A file read from its start, counting the bytes that were read."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._size = file, size
        self._items = 0

    def header(self) -> GGUFHeader:
        """The whole header; ValueError."""
        if self._bytes(4) != _MAGIC:
            raise ValueError("it is no GGUF file")
        version = self._number("<I")
        if version not in _VERSIONS:
            raise ValueError(f"its version is {version}, and not 2 or 3")
        tensors, values = self._number("<Q"), self._number("<Q")
        if tensors > _MOST_TENSORS or values > _MOST_VALUES:
            raise ValueError(f"it says that it has {tensors} tensors and {values} values")
        found = {self._text(): self._value(self._number("<I")) for _ in range(values)}
        alignment = found.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
            raise ValueError(f"its alignment is {alignment!r}")
        return GGUFHeader(found, self._tensors(tensors, alignment))

    def _tensors(self, count: int, alignment: int) -> tuple[GGUFTensor, ...]:
        """The tensors, each of which lies wholly in the file behind the header."""
        told = [self._tensor() for _ in range(count)]
        start = -(-self._file.tell() // alignment) * alignment
        for tensor, offset in told:
            packing = _packing(tensor)
            end = start + offset + tensor.values // packing.values * packing.bytes
            if tensor.values % packing.values or end > self._size:
                raise ValueError(f"it ends inside of its tensor {tensor.name[:80]!r}")
        return tuple(tensor for tensor, _ in told)

    def _tensor(self) -> tuple[GGUFTensor, int]:
        name, dimensions = self._text(), self._number("<I")
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"its tensor {name[:80]!r} has {dimensions} dimensions")
        sizes = tuple(self._number("<Q") for _ in range(dimensions))
        kind, offset = self._number("<I"), self._number("<Q")
        return GGUFTensor(name, sizes, kind), offset

    def _value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self._text()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise ValueError(f"it holds a value of the unknown type {kind}")
        return self._number(_SCALARS[kind])

    def _array(self) -> int:
        """The length of an array; its values are skipped."""
        kind, length = self._number("<I"), self._number("<Q")
        if kind in _SCALARS:
            self._skip(length * struct.calcsize(_SCALARS[kind]))
            return int(length)
        if kind != _TEXT:
            raise ValueError(f"it holds an array of the type {kind}")
        self._items += length
        if self._items > _MOST_ITEMS:
            raise ValueError(f"it says that it has {self._items} texts")
        for _ in range(length):
            self._skip(self._number("<Q"))
        return int(length)

    def _text(self) -> str:
        length = self._number("<Q")
        if length > _MOST_TEXT:
            raise ValueError(f"it says that it has a text of {length} bytes")
        return self._bytes(length).decode("utf-8")

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._bytes(struct.calcsize(form)))[0]

    def _bytes(self, count: int) -> bytes:
        found = self._file.read(count)
        if len(found) < count:
            raise ValueError("it ends inside of its header")
        return found

    def _skip(self, count: int) -> None:
        if count > self._size - self._file.tell():
            raise ValueError("it ends inside of its header")
        self._file.seek(count, 1)


def _packing(tensor: GGUFTensor) -> Packing:
    packing = PACKINGS.get(tensor.kind)
    if packing is None:
        kind = _OTHERS.get(tensor.kind, f"of kind {tensor.kind}")
        kinds = ", ".join(one.name for one in PACKINGS.values())
        raise ValueError(f"its tensor {tensor.name[:80]!r} is {kind}, and MLX reads {kinds}")
    return packing
