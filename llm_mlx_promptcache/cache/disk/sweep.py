"""What crashes and others left: rows without a file, files without a row, files never finished.

Who writes to the index enters a row and publishes its file in one transaction, and removes both in
one, so whoever holds the index's lock sees each with the other. A file without a row is whole more
often than not (a power cut may lose the index's last rows): it is taken in again where it fits.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from ..layers.errors import UnknownKind
from ..span import DamagedSpan, Head
from .claims import Claim, looked_at
from .content import layout_to_text, opened
from .file_ids import file_ids_in, is_temporary
from .files import Files, is_gone
from .folder import StoreFolder
from .index import Index
from .index_rows import SpanRow
from .witness import Witness

STALE_SECONDS: Final = 3600.0  # what nobody can use is left to age, in case somebody wonders


class Candidate(NamedTuple):
    """A file that may enter the index, as its head says."""

    row: SpanRow
    layout: str
    label: str


def row_of(file_id: str, size: int, head: Head, folder: StoreFolder) -> SpanRow:
    """The index's row of a file with this head, used just now."""
    return SpanRow(
        file_id=file_id,
        namespace=head.namespace,
        parent=head.parent,
        start=head.start,
        tokens=head.tokens,
        resumes=head.resumes,
        tier=folder.rank_of(head.tier),
        bytes=size,
        used_at=int(folder.files.now()),
    )


def candidate(folder: StoreFolder, file_id: str) -> Candidate:
    """A file's head as a row; contents are verified when they are read, as always.

    DamagedSpan, OSError or UnknownKind where it has none.
    """
    span = opened(folder.span(file_id), folder.files)
    span.close()
    row = row_of(file_id, span.size, span.head, folder)
    return Candidate(row, layout_to_text(span.head.layout), span.head.label)


def hangs(row: SpanRow, parent: SpanRow | None) -> bool:
    """Whether a span can hang where its file says: on its parent's tokens, or at the start."""
    if parent is None:
        return row.parent == "" and row.start == 0 and len(row.tokens) > 0
    return parent.start < row.start <= parent.end and row.namespace == parent.namespace


def sweep(
    index: Index,
    folder: StoreFolder,
    witness: Witness,
    *,
    every: bool = False,
) -> int:
    """Drop rows without a file, take in files without a row, remove what nobody can use.

    Returns how many. What a live writer claims stays, whatever its age. What nobody can use is
    left to age first, unless `every` says that somebody wants it gone.
    """
    names = folder.names()
    listed = index.file_ids()
    rows, file_ids = set(listed), file_ids_in(names)
    # One by one: sorting 100,000 names, or taking sets apart, keeps all other threads out.
    swept = sum(
        _drop_if_gone(index, folder, file_id, witness)
        for file_id in listed
        if file_id not in file_ids
    )
    orphans = [file_id for file_id in file_ids if file_id not in rows]
    swept += _orphans(index, folder, orphans, witness, every=every)
    for name in filter(is_temporary, names):
        swept += _remove_unfinished(folder.spans / name, folder.files)
    return swept


def _drop_if_gone(index: Index, folder: StoreFolder, file_id: str, witness: Witness) -> int:
    path = folder.span(file_id)
    if not is_gone(path):
        return 0
    with index.transaction():
        if not is_gone(path):
            return 0
        for row in index.below(file_id):
            witness.refute(index, row)
        gone = index.drop(file_id)
        for one in gone:
            _removed(folder.span(one), folder.files)
    return len(gone)


def _orphans(
    index: Index,
    folder: StoreFolder,
    file_ids: Iterable[str],
    witness: Witness,
    *,
    every: bool,
) -> int:
    """Files without a row: those that fit are taken in, parents first."""
    found: list[Candidate] = []
    useless: list[str] = []
    unjudged: set[str] = set()
    for file_id in file_ids:
        try:
            found.append(candidate(folder, file_id))
        except DamagedSpan:
            useless.append(file_id)
        except (OSError, UnknownKind):
            unjudged.add(file_id)  # gone, or not to be judged now
    swept = 0
    for one in sorted(found, key=lambda c: (c.row.start, c.row.end)):
        if _take_in(index, folder, one, witness):
            swept += 1
        elif one.row.parent in unjudged:  # it may fit once that can be read again
            unjudged.add(one.row.file_id)
        else:
            useless.append(one.row.file_id)
    for file_id in useless:
        path = folder.span(file_id)
        if every or _is_stale(path, folder.files):
            with index.transaction():
                swept += not index.has(file_id) and _removed(path, folder.files)
    return swept


def _removed(path: Path, files: Files) -> bool:
    """Whether a file was removed now; one that can't be removed holds up nothing else."""
    with suppress(OSError):
        return files.unlink(path)
    return False


def _take_in(index: Index, folder: StoreFolder, found: Candidate, witness: Witness) -> bool:
    """Whether a file is in the index now, or need not be any more.

    Before it is said not to fit, the files of the rows that are in its way are asked.
    """
    row = found.row
    with index.transaction():
        if index.has(row.file_id) or is_gone(folder.span(row.file_id)):
            return True
        parent = index.row(row.parent) if row.parent else None
        same_layers = index.namespaces.layout(row.namespace) in (None, found.layout)
        fits = same_layers and hangs(row, parent) and (parent is not None or not row.parent)
        if fits and index.add(row, found.layout, found.label):
            return True
        for other in (parent, index.at(row)):
            if other is not None:
                witness.refute(index, other)
        if not same_layers:
            witness.refute_layout(index, row.namespace)
    return False


def _remove_unfinished(path: Path, files: Files) -> bool:
    with looked_at(path) as claim:
        if claim is Claim.HELD or (claim is Claim.UNKNOWN and not _is_stale(path, files)):
            return False
        return _removed(path, files)


def _is_stale(path: Path, files: Files) -> bool:
    """Whether a file is old; the clock may have jumped either way."""
    with suppress(OSError):
        return abs(files.now() - path.lstat().st_mtime) > STALE_SECONDS
    return False
