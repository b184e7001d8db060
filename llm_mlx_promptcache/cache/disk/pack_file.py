"""A pack being written: several files of one path as one, copied in small steps.

Each array of a layer becomes one with the rows of all spans, so a pack is read as one file, at the
cost of one. The files are read from their start on, each once, and verified; a pack that is written
anew leaves out dead rows.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ..layers.kinds import KVRows, Window
from ..span import DamagedSpan, Head, StoredTensor
from .coding import coded
from .descriptors import Few
from .file_ids import pack_path
from .span_header import BLOCK_BYTES, Member, metadata_about, metadata_of
from .tensor_places import DTYPES, TensorShape, header_of
from .unpublished import ExportTarget, UnpublishedFile

if TYPE_CHECKING:
    from ..layers.kinds import LayerKind
    from ..layers.layout import Layout
    from ..layers.pieces import Dtype
    from .files import Files
    from .held_span import HeldSpan
    from .span_file import OpenSpan

STEP_BYTES: Final = 8 << 20  # of one read, and of one write
CODED_TYPE: Final = "BF16"  # measured: no other type's numbers come to much less
_MOST_SIZE: Final = 99_999_999  # of a block, in the most digits it may have


class PackSource(NamedTuple):
    """A file to copy from: those of its spans that are wanted, which follow each other there."""

    file: OpenSpan | HeldSpan
    members: list[Member]
    first: int  # row of theirs

    @property
    def rows(self) -> int:
        """The number of the file's rows to be copied."""
        return sum(member.length for member in self.members)

    @property
    def heads(self) -> list[Head]:
        """The heads of the spans to be copied."""
        heads = self.file.heads
        return [heads[member.file_id] for member in self.members]


class _ArrayShape(NamedTuple):
    """One array of a layer without its number of rows: [*lead, rows, width]."""

    dtype: Dtype
    lead: tuple[int, ...]
    width: int


class _Array(NamedTuple):
    """One array of a pack: its shape, its bytes, and those of each block if it is coded."""

    name: str
    shape: _ArrayShape
    held: tuple[int, ...]
    nbytes: int
    blocks: list[int]

    @property
    def is_coded(self) -> bool:
        """True if it is stored in fewer bytes."""
        return bool(self.blocks)

    @property
    def listed(self) -> TensorShape:
        """The array as the header lists it."""
        if self.is_coded:
            size = sum(self.blocks)
            return TensorShape(self.name, "U8", (size,), size)
        return TensorShape(self.name, DTYPES[self.shape.dtype][0], self.held, self.nbytes)


class _ByteRun(NamedTuple):
    """The next bytes of one of the files, to be copied or to be read for its digest."""

    source: PackSource
    nbytes: int
    copied: bool


def can_code(sources: Sequence[PackSource]) -> bool:
    """True if these files have uncoded arrays that can be coded."""
    return any(
        DTYPES[shape.dtype][0] == CODED_TYPE
        for source in sources
        if not source.file.coded
        for shapes in _shapes([source])
        for shape in shapes
    )


def source_of(file: OpenSpan, wanted: Sequence[str]) -> PackSource | None:
    """A file reduced to these spans; None unless they follow each other there."""
    heads = file.heads
    ids = list(heads)
    at = ids.index(wanted[0]) if wanted[0] in heads else len(ids)
    if ids[at : at + len(wanted)] != list(wanted):
        return None
    members = [
        Member(one, len(heads[one].tokens), heads[one].tier, heads[one].resumes) for one in wanted
    ]
    return PackSource(file, members, heads[wanted[0]].start - file.head.start)


def can_pack(layout: Layout) -> bool:
    """True if spans of such layers may be rows of one array: rows, and windows of them."""
    return all(_is_rows(kind) or isinstance(kind, Window) for kind in layout)


def holds_every_row(file: OpenSpan | HeldSpan) -> bool:
    """True unless a window has left out some of the file's tokens: only a row a token is packed."""
    count = len(file.head.tokens)
    return all(
        entry is not None and len(entry.shape) >= 2 and entry.shape[-2] == count
        for layer, kind in enumerate(file.head.layout)
        if not _is_rows(kind)
        for entry in file.entries(layer)
    )


class UnpublishedPack(UnpublishedFile):
    """A pack under a private name; it is whole once all steps of `written` are taken.

    If `coded`, its bfloat16 arrays are.
    """

    def __init__(
        self,
        folder: Path,
        sources: Sequence[PackSource],
        few: Few,
        files: Files,
        *,
        coded: bool,
        target: ExportTarget | None = None,
    ) -> None:
        self._sources = sources
        self._few = few
        self._shapes = _shapes(sources)
        self._coded = coded
        self._unsynced = 0
        self.members = [member for source in sources for member in source.members]
        self._about = metadata_about(target.about) if target is not None else {}
        super().__init__(folder, pack_path if target is None else target.named, files)

    def written(self) -> Iterator[None]:
        """Write it, with a pause behind each read or write of at most `STEP_BYTES`.

        DamagedSpan if one of its files is damaged; that one's `broken` is set.
        """
        head = self._head()
        arrays = self._arrays(len(head.tokens))
        beginning = self._beginning(head, arrays)
        if self._coded:
            self.reserve(len(beginning))
        else:
            self.put(beginning)
        self.put(memoryview(head.tokens).cast("B"))
        yield
        for each in arrays:
            yield from self._array(each)
        for source in self._sources:
            self._few.use(source.file)
            try:
                source.file.verify()
            except DamagedSpan as error:
                source.file.broken = error
                raise
        if self._coded:
            # The place of each array is only known now: so these bytes are digested last.
            ready = self._beginning(head, arrays)
            beginning = ready + b" " * (len(beginning) - len(ready))
            beginning = (len(beginning) - 8).to_bytes(8, "little") + beginning[8:]
            self.take(beginning)
        self.put_digest()
        if self._coded:
            self.put_first(beginning)
        self.sync()

    def _array(self, array: _Array) -> Iterator[None]:
        """Copy one array, coded if wanted."""
        most = BLOCK_BYTES if array.is_coded else STEP_BYTES
        block, at, number = memoryview(bytearray(min(most, array.nbytes))), 0, 0
        for source, nbytes, copied in self._runs(array.shape):
            left = nbytes
            while left:
                if at == block.nbytes:
                    yield
                    self._flush(array, block, number)
                    at, number = 0, number + 1
                    yield
                part = block[at : at + left]
                self._few.use(source.file)
                source.file.read_into([part])
                left -= part.nbytes
                # Rows that are not copied are overwritten by the next.
                at += part.nbytes if copied else 0
                if not copied and left:
                    yield
        yield
        if at:
            self._flush(array, block[:at], number)
            yield

    def _flush(self, array: _Array, block: memoryview, number: int) -> None:
        """Write a block. It is synced before much waits for it, so that no wait gets long."""
        if array.is_coded:
            made = coded(block)
            array.blocks[number] = len(made)
            self.put(made)
        else:
            self.put(block)
        self._unsynced += block.nbytes
        if self._unsynced >= STEP_BYTES:
            self._unsynced = 0
            self.sync()

    def _arrays(self, count: int) -> list[_Array]:
        found = []
        for layer, shapes in enumerate(self._shapes):
            for index, shape in enumerate(shapes):
                held = (*shape.lead, count, shape.width)
                nbytes = math.prod(held) * shape.dtype.size
                blocks = []
                if self._coded and DTYPES[shape.dtype][0] == CODED_TYPE:
                    blocks = [_MOST_SIZE] * -(-nbytes // BLOCK_BYTES)
                found.append(_Array(f"layer.{layer}.{index}", shape, held, nbytes, blocks))
        return found

    def _beginning(self, head: Head, arrays: Sequence[_Array]) -> bytes:
        told = {array.name: [array.held, array.blocks] for array in arrays if array.is_coded}
        metadata = metadata_of(head, self.file_id, self.members, told) | self._about
        return header_of(metadata, len(head.tokens), [array.listed for array in arrays])

    def _head(self) -> Head:
        heads = [head for source in self._sources for head in source.heads]
        tokens: array[int] = array("I")
        for head in heads:
            tokens.extend(head.tokens)
        return heads[0]._replace(tokens=tokens, resumes=heads[-1].resumes)

    def _runs(self, shape: _ArrayShape) -> Iterator[_ByteRun]:
        """An array's bytes in all files in the order in which they are read."""
        row = shape.width * shape.dtype.size
        for _ in range(math.prod(shape.lead)):
            for source in self._sources:
                behind = source.first + source.rows
                dead = len(source.file.head.tokens) - behind
                yield _ByteRun(source, source.first * row, copied=False)
                yield _ByteRun(source, source.rows * row, copied=True)
                yield _ByteRun(source, dead * row, copied=False)


def _is_rows(kind: LayerKind) -> bool:
    return isinstance(kind, KVRows) and type(kind).join is KVRows.join


def _shapes(sources: Sequence[PackSource]) -> list[list[_ArrayShape]]:
    """The arrays in all of these files, a row a token; DamagedSpan for the first that differs."""
    found: list[list[_ArrayShape]] = []
    for source in sources:
        file = source.file
        here = [
            [_shape(file, entry) for entry in file.entries(layer)]
            for layer in range(len(file.head.layout))
        ]
        found = found or here
        if here != found or not can_pack(file.head.layout):
            file.broken = DamagedSpan(f"{file.name} does not hold what its model keeps")
            raise file.broken
    return found


def _shape(file: OpenSpan | HeldSpan, entry: StoredTensor | None) -> _ArrayShape:
    rows = len(file.head.tokens)
    if entry is None or len(entry.shape) < 2 or entry.shape[-2] != rows:
        file.broken = DamagedSpan(f"{file.name} does not hold a row for each of its tokens")
        raise file.broken
    return _ArrayShape(entry.dtype, entry.shape[:-2], entry.shape[-1])
