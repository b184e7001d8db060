"""A span's file written anew without its states and windows, as a pack of this one span.

A pack has a name of its own, so the old file stays whole until the index names the new one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from .file_ids import pack_path
from .files import Files
from .span_file import OpenSpan
from .span_header import Member, metadata_of
from .tensor_places import DTYPES, TensorShape, header_of, names_of
from .unpublished import UnpublishedFile

_STEP_BYTES: Final = 8 << 20


class UnpublishedRows(UnpublishedFile):
    """The tokens and rows of a span's file under a private name, synced.

    DamagedSpan if they are not as they were written.
    """

    def __init__(self, folder: Path, source: OpenSpan, files: Files) -> None:
        source.leave_ends()
        super().__init__(folder, pack_path, files)
        try:
            self._copy(source)
        except BaseException:
            self.close()
            raise

    def _copy(self, source: OpenSpan) -> None:
        head = source.head._replace(resumes=False)
        (file_id,) = source.heads
        member = Member(file_id, len(head.tokens), head.tier, head.resumes)
        said = metadata_of(head, self.file_id, [member])
        self.put(header_of(said, len(head.tokens), _shapes(source)))
        self.put(memoryview(head.tokens).cast("B"))
        begin, end = source.extent(0, len(head.layout))
        block = memoryview(bytearray(min(_STEP_BYTES, end - begin)))
        for at in range(begin, end, _STEP_BYTES):
            part = block[: end - at]
            source.read_into([part])
            self.put(part)
        source.verify()
        self.put_digest()
        self.sync()


def _shapes(source: OpenSpan) -> list[TensorShape]:
    return [
        TensorShape(name, DTYPES[entry.dtype][0], entry.shape, entry.end - entry.begin)
        for layer, names in enumerate(names_of(source.head.layout))
        for name, entry in zip(names, source.entries(layer), strict=True)
        if entry is not None
    ]
