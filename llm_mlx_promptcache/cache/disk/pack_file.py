"""A pack as it is written: several files of one path as one, copied in small steps.

Each array of a layer becomes one whose rows are those of all spans, so a pack is read as one file
and costs as much. The files are read from their start on, each once, and verified; of a pack that
is written anew, rows that are dead are left out.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ..layers.kinds import KVRows
from ..span import DamagedSpan, Head, StoredTensor
from .descriptors import Few
from .file_ids import pack_path
from .span_header import DTYPES, Member, TensorShape, header_of, metadata_of
from .unpublished import UnpublishedFile

if TYPE_CHECKING:
    from ..layers.layout import Layout
    from ..layers.pieces import Dtype
    from .files import Files
    from .span_file import OpenSpan

STEP_BYTES: Final = 8 << 20  # of one read, and of one write


class PackSource(NamedTuple):
    """A file to copy from: of its spans those that are wanted, which follow each other there."""

    file: OpenSpan
    members: list[Member]
    first: int  # row of theirs

    @property
    def rows(self) -> int:
        """How many of the file's rows are copied."""
        return sum(member.length for member in self.members)

    @property
    def heads(self) -> list[Head]:
        """The heads of what is copied."""
        heads = self.file.heads
        return [heads[member.file_id] for member in self.members]


class _ArrayShape(NamedTuple):
    """One array of a layer but for how many rows it has: [*lead, rows, width]."""

    dtype: Dtype
    lead: tuple[int, ...]
    width: int


class _ByteRun(NamedTuple):
    """Bytes that come next in one of the files, to be copied or to be read for its digest."""

    source: PackSource
    nbytes: int
    copied: bool


def source_of(file: OpenSpan, wanted: Sequence[str]) -> PackSource | None:
    """A file as far as these spans of it go; None unless they follow each other there."""
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
    """Whether spans of such layers can be rows of one array: each layer holds a row a token."""
    return all(isinstance(kind, KVRows) and type(kind).join is KVRows.join for kind in layout)


class UnpublishedPack(UnpublishedFile):
    """A pack under a private name; it is whole once all steps of `written` are taken."""

    def __init__(self, folder: Path, sources: Sequence[PackSource], few: Few, files: Files) -> None:
        self._sources = sources
        self._few = few
        self._shapes = _shapes(sources)
        self.members = [member for source in sources for member in source.members]
        super().__init__(folder, pack_path, files)

    def written(self) -> Iterator[None]:
        """Write it, with a pause behind each read or write of at most `STEP_BYTES`.

        DamagedSpan where one of its files is, whose `broken` says so.
        """
        head = self._head()
        self.put(header_of(metadata_of(head, self.file_id, self.members), *self._listed(head)))
        self.put(memoryview(head.tokens).cast("B"))
        yield
        block, at = memoryview(bytearray(STEP_BYTES)), 0
        for source, nbytes, copied in self._runs():
            left = nbytes
            while left:
                if at == STEP_BYTES:
                    yield
                    at = self._flush(block)
                    yield
                part = block[at : at + left]
                self._few.use(source.file)
                source.file.read_into([part])
                left -= part.nbytes
                # What is not copied is overwritten by what comes next.
                at += part.nbytes if copied else 0
                if not copied and left:
                    yield
        self._flush(block[:at])
        yield
        for source in self._sources:
            self._few.use(source.file)
            try:
                source.file.verify()
            except DamagedSpan as error:
                source.file.broken = error
                raise
        self.put_digest()
        self.sync()

    def _flush(self, block: memoryview) -> int:
        """Write a block; where the next one begins. It is synced at once: no wait gets long."""
        self.put(block)
        self.sync()
        return 0

    def _head(self) -> Head:
        heads = [head for source in self._sources for head in source.heads]
        tokens: array[int] = array("I")
        for head in heads:
            tokens.extend(head.tokens)
        return heads[0]._replace(tokens=tokens, resumes=heads[-1].resumes)

    def _listed(self, head: Head) -> tuple[int, list[TensorShape]]:
        count = len(head.tokens)
        tensors = []
        for layer, entries in enumerate(self._shapes):
            for index, (dtype, lead, width) in enumerate(entries):
                shape = (*lead, count, width)
                name, nbytes = f"layer.{layer}.{index}", math.prod(shape) * dtype.size
                tensors.append(TensorShape(name, DTYPES[dtype][0], shape, nbytes))
        return count, tensors

    def _runs(self) -> Iterator[_ByteRun]:
        """All bytes of all files in the order in which they are read: array by array."""
        for entries in self._shapes:
            for dtype, lead, width in entries:
                for _ in range(math.prod(lead)):
                    for source in self._sources:
                        row, behind = width * dtype.size, source.first + source.rows
                        dead = len(source.file.head.tokens) - behind
                        yield _ByteRun(source, source.first * row, copied=False)
                        yield _ByteRun(source, source.rows * row, copied=True)
                        yield _ByteRun(source, dead * row, copied=False)


def _shapes(sources: Sequence[PackSource]) -> list[list[_ArrayShape]]:
    """What all of these files hold a row; DamagedSpan for the first that holds something else."""
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


def _shape(file: OpenSpan, entry: StoredTensor | None) -> _ArrayShape:
    rows = len(file.head.tokens)
    if entry is None or len(entry.shape) < 2 or entry.shape[-2] != rows:
        file.broken = DamagedSpan(f"{file.name} does not hold a row for each of its tokens")
        raise file.broken
    return _ArrayShape(entry.dtype, entry.shape[:-2], entry.shape[-1])
