"""The part of a damaged file that is whole, kept: a span's rows without its states and windows.

The order of making a pack: new file, sync, one transaction, and the old file goes. So a kill leaves
one of them whole, and a sweep removes the other.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from ..layers.errors import UnknownKind
from . import content
from .unpublished import NotPublished

if TYPE_CHECKING:
    from .folder import StoreFolder
    from .index import Index
    from .index_rows import SpanRow
    from .rows_alone import UnpublishedRows
    from .shared_index import SharedIndex


def ends_removed(
    index: SharedIndex, folder: StoreFolder, file_id: str, *, asked: bool = False
) -> bool:
    """True once a span has no damaged states and windows; False while the index is locked.

    They are looked at again first. DamagedSpan if its rows are damaged too, OSError if its file
    can't be read or written anew just now.
    """
    found = index.run(lambda index: (index.row(file_id),), None, asked=asked)
    if found is None:
        return False
    (row,) = found
    if row is None or row.pack:  # evicted meanwhile, or done by another process
        return True
    path = folder.span(file_id)
    try:
        if content.said_by(path, folder.files, verified=True).spoiled is None:
            return True
        return _replaced(index, folder, row, asked=asked)
    except (FileNotFoundError, UnknownKind):
        return True


def _replaced(index: SharedIndex, folder: StoreFolder, row: SpanRow, *, asked: bool) -> bool:
    """True once a span's file is another, or not there; False while the index is locked."""
    path = folder.span(row.file_id)
    source = content.opened(path, folder.files)
    try:
        with content.rows_alone(folder.spans, source, folder.files) as made:
            entered = index.run(lambda index: _enter(index, made, row), None, asked=asked)
    except NotPublished as error:
        raise error.why from None
    finally:
        source.close()
    if entered:
        with suppress(OSError):  # a sweep tries again
            folder.files.unlink(path)
    return entered is not None


def _enter(index: Index, made: UnpublishedRows, row: SpanRow) -> bool:
    """Publish and enter the new file; False if the span has changed."""
    try:
        with index.durable_transaction():
            if index.row(row.file_id) != row:
                return False
            index.packs.put(made.file_id, made.size)
            index.move(row._replace(bytes=made.size, pack=made.file_id, resumes=False))
            made.publish_durably()
    except BaseException:
        made.withdraw()
        raise
    return True
