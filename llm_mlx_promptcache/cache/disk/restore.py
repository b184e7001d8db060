"""A path restored: its files are opened and planned with, read side by side, and verified last."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Any, cast

import mlx.core as mx

from ..layers.ends import needs_ends
from ..layers.kinds import KVRows, Layer, LayerKind, ListOf, Window
from ..layers.layout import PathPart
from ..layers.pieces import Piece
from ..span import DamagedSpan, Query, StoredSpan, StoredTensor
from ..store import SpanReader, Store
from .descriptors import Few
from .span_file import empty
from .streams import InPieces, InPlace


class Reading(Enum):
    """The outcome of reading a path's files."""

    WHOLE = auto()  # all were opened, and nothing is known to be wrong
    CUT_SHORT = auto()  # one could not be opened: the path, or what resumes, ends before it
    REMOVED = auto()  # one was damaged or gone, and is not in the store any more


class Restore:
    """The files of a path beyond what memory holds, opened and planned with, then read."""

    def __init__(self, store: Store, query: Query) -> None:
        self._store = store
        self._query = query
        self._spans: list[tuple[list[StoredSpan], SpanReader]] = []  # several in a pack
        self.parts: list[PathPart] = []
        self.state = Reading.WHOLE
        self._few = Few()

    def open(self, spans: Sequence[StoredSpan], reached: int) -> None:
        """Open the files beyond token `reached`, up to the first that fails."""
        for one_file in _by_file([span for span in spans if span.end > reached]):
            self._few.make_room()
            opened = _opened(self._store, self._query, *one_file)
            if opened is None:
                self.state = Reading.CUT_SHORT
                return
            self._few.use(opened)
            self._spans.append((one_file, opened))
            end = opened.head.start + len(opened.head.tokens)
            start = max(one_file[0].start, reached)
            self.parts.append(PathPart(start, one_file[-1].end, end, opened.outline()))

    def lacks_one(self) -> None:
        """Note that a checkpoint of the path could not be read, so that it resumes earlier."""
        if self.state is Reading.WHOLE:
            self.state = Reading.CUT_SHORT

    @property
    def nbytes(self) -> int:
        """Bytes to read: files are read whole, for their digests, but for ends that are left."""
        return sum(opened.size for _, opened in self._spans)

    @property
    def is_coded(self) -> bool:
        """True if any of the files is to be unpacked too."""
        return any(opened.coded for _, opened in self._spans)

    @property
    def starts(self) -> list[int]:
        """The starts of the parts' files."""
        return [opened.head.start for _, opened in self._spans]

    def layers(self, count: int, headroom: int) -> list[Layer] | None:
        """The layers at token `count`, if all of them are rows and are in files alone."""
        layout = self._query.layout
        in_place = all(isinstance(k, KVRows) and type(k).join is KVRows.join for k in layout)
        if not in_place or not self._spans or self.parts[0].start:
            return None
        if [part.start for part in self.parts] != self.starts:
            return None
        spans = [opened for _, opened in self._spans]
        if not all(_is_plain(entry) for i in range(len(layout)) for entry in spans[0].entries(i)):
            return None
        used = self.parts[: len(spans)]
        return list(InPlace(spans, self._few, used, count, headroom).layers_read())

    def streamed(self, count: int) -> list[PathPart]:
        """The parts before token `count`, whose pieces can be asked for once, layer by layer.

        Ends that no layer at `count` is made from are left unread.
        """
        for _, opened in self._spans[len([p for p in self.parts if p.start < count]) :]:
            opened.close()
        used = [part for part in self.parts if part.start < count]
        self._spans = self._spans[: len(used)]
        if not used:
            return []
        for (_, opened), part in zip(self._spans, used, strict=True):
            if not needs_ends(self._query.layout, part, count):
                opened.leave_ends()
        stream = InPieces([opened for _, opened in self._spans], self._few)
        return [part._replace(pieces=stream.of(n)) for n, part in enumerate(used)]

    def verify(self) -> bool:
        """Check after all was read; False if a file is not as it was written, and it is removed."""
        good = True
        for spans, opened in self._spans:
            self._few.use(opened)
            try:
                opened.verify()
            except DamagedSpan as error:
                self._damaged(spans, error)
                good = False
            except OSError as error:
                self._unreadable(error)
                good = False
        if good and self._spans:
            self._store.used([span for spans, _ in self._spans for span in spans])
        return good

    def failed(self, error: Exception) -> bool:
        """Handle an error; True if files were read when it happened.

        Files that were seen to be damaged are removed. Other failures (memory, the device, the
        joining) say nothing about a file: it stays.
        """
        for spans, opened in self._spans:
            if opened.broken is not None:
                self._damaged(spans, opened.broken)
        if self._spans and self.state is not Reading.REMOVED:
            self._unreadable(error)
        return bool(self._spans)

    # A traceback holds the frames in which buffers were filled: the report goes without.

    def _damaged(self, spans: Sequence[StoredSpan], error: DamagedSpan) -> None:
        # Its followers in the file hang on it.
        self._store.damaged(spans[0], error.with_traceback(None))
        self.state = Reading.REMOVED

    def _unreadable(self, error: Exception) -> None:
        if isinstance(error, FileNotFoundError) and self._is_one_gone():
            self.state = Reading.REMOVED
        else:
            self._store.unreadable(error.with_traceback(None))

    def _is_one_gone(self) -> bool:
        """True if another process evicted one of the files meanwhile; the store sees it as well."""
        for (span, *_), _ in self._spans:
            self._few.make_room()
            opened = self._store.open(self._query.namespace, span, self._query.ids)
            if opened is None:
                return True
            opened.close()
        return False

    def close(self) -> None:
        """Close the files."""
        for _, opened in self._spans:
            opened.close()


def _is_plain(entry: StoredTensor | None) -> bool:
    return entry is not None and len(entry.shape) >= 2 and 0 not in entry.shape


def outline_of_checkpoint(
    store: Store, query: Query, span: StoredSpan
) -> list[Piece | None] | None:
    """A checkpoint's pieces to plan with; None if it is not available."""
    opened = _opened(store, query, span)
    if opened is None:
        return None
    opened.close()
    return opened.outline()


def read_checkpoint(store: Store, query: Query, span: StoredSpan) -> list[Piece | None] | None:
    """A checkpoint's pieces, verified; None if it is gone, damaged or can't be read."""
    opened = _opened(store, query, span)
    if opened is None:
        return None
    try:
        layers = len(opened.head.layout)
        begin, end = opened.extent(0, layers)
        (data,) = empty([end - begin])
        opened.read_into([memoryview(cast("Any", data))[: end - begin]])
        opened.verify()
        pieces = opened.pieces(0, layers, data)
        mx.eval([a for piece in pieces for a in piece or () if a is not None])
    except DamagedSpan as error:
        store.damaged(span, error)
        return None
    except (OSError, MemoryError, RuntimeError) as error:  # the system's, or MLX's: not the file's
        store.unreadable(error)
        return None
    finally:
        opened.close()
    store.used([span])
    return pieces


def _by_file(spans: Sequence[StoredSpan]) -> list[list[StoredSpan]]:
    """The spans of a path grouped by file, in order."""
    found: list[list[StoredSpan]] = []
    for span in spans:
        if found and span.pack and found[-1][0].pack == span.pack:
            found[-1].append(span)
        else:
            found.append([span])
    return found


def _opened(store: Store, query: Query, span: StoredSpan, *more: StoredSpan) -> SpanReader | None:
    """The file of a span, and of `more`, if it holds what these layers would have kept of it."""
    opened = store.open(query.namespace, span, query.ids, more)
    if opened is None:
        return None
    layout = query.layout
    pairs = zip(layout, opened.outline(), strict=False)
    length = len(opened.head.tokens)
    fit = all(fits(kind, piece, length, packed=span.pack != "") for kind, piece in pairs)
    if opened.head.layout == layout and fit:
        return opened
    opened.close()
    store.damaged(span, DamagedSpan(f"{opened.name} does not hold what its model keeps"))
    return None


def fits(kind: LayerKind, piece: Piece | None, length: int, *, packed: bool = False) -> bool:
    """True if a piece has the shape that its kind gives a span of so many tokens.

    Where spans are `packed`, a window has a row a token, of which only the last are used.
    """
    if piece is None or not isinstance(kind, KVRows | Window | ListOf):
        return True
    if isinstance(kind, ListOf):
        pairs = zip(kind.parts, kind.parted(piece), strict=True)
        return all(fits(part, sub, length) for part, sub in pairs)
    if not all(array is not None and len(array.shape) >= 2 for array in piece):
        return False
    held = {array.shape[-2] for array in piece if array is not None}
    if packed or isinstance(kind, KVRows):
        return held == {length}
    return len(held) == 1 and max(held) <= kind.size
