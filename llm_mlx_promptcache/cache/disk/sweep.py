"""Leftovers of crashes: rows without a file, files without a row, files never finished.

A writer of the index enters a row and publishes its file in one transaction, and removes both in
one, so any holder of the index's lock sees each with the other. A file without a row is whole more
often than not (a power cut may lose the index's last rows): it is taken in again if it fits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from ..layers.errors import UnknownKind
from ..span import DamagedSpan, Head
from .claims import Claim, looked_at
from .content import layout_to_text, said_by
from .damage import DamagedIndex
from .file_ids import file_ids_in, is_temporary, packs_in
from .files import Files, is_gone
from .folder import StoreFolder
from .index import Index
from .index_rows import SpanRow
from .witness import Witness

STALE_SECONDS: Final = 3600.0  # useless files are left to age, for later inspection


class Candidate(NamedTuple):
    """A file that may enter the index, with the data of its head."""

    row: SpanRow
    layout: str
    label: str


def row_of(file_id: str, head: Head, size: int, folder: StoreFolder, pack: str = "") -> SpanRow:
    """The index's row of a span with this head and so many bytes, used just now."""
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
        pack=pack,
    )


def candidates(folder: StoreFolder, path: Path, pack: str = "") -> list[Candidate]:
    """A file's spans as rows; contents are verified when they are read, as always.

    DamagedSpan, OSError or UnknownKind if that can't be told.
    """
    file = said_by(path, folder.files, verified=False)
    return [
        Candidate(
            row_of(file_id, head, file.shares[file_id], folder, pack),
            layout_to_text(head.layout),
            head.label,
        )
        for file_id, head in file.heads.items()
    ]


def hangs(row: SpanRow, parent: SpanRow | None) -> bool:
    """True if a span can hang where its file says: on its parent's tokens, or at the start."""
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
    """Drop rows without a file, take in files without a row, remove useless files.

    Returns their number. A live writer's claimed files stay, whatever their age. Useless files are
    left to age first, unless `every` of them is wanted gone.
    """
    names = folder.names()
    places = index.places()
    file_ids, packs = file_ids_in(names), packs_in(names)
    # One by one: sorting 100,000 names, or taking sets apart, keeps all other threads out.
    swept = sum(
        _drop_if_gone(index, folder, file_id, witness)
        for file_id, pack in places.items()
        if (pack not in packs if pack else file_id not in file_ids)
    )
    swept += _orphan_packs(index, folder, packs, every=every)
    swept += sum(
        _remove_beside_pack(index, folder, file_id) for file_id in file_ids if places.get(file_id)
    )
    orphans = [file_id for file_id in file_ids if file_id not in places]
    swept += _orphans(index, folder, orphans, witness, every=every)
    for name in filter(is_temporary, names):
        swept += _remove_unfinished(folder.spans / name, folder.files)
    return swept


def _drop_if_gone(index: Index, folder: StoreFolder, file_id: str, witness: Witness) -> int:
    found = index.row(file_id)
    if found is None or not is_gone(folder.place(file_id, found.pack)):
        return 0
    with index.transaction():
        found = index.row(file_id)
        if found is None or not is_gone(folder.place(file_id, found.pack)):
            return 0
        witness.refute_gone(found)
        for row in index.below(file_id):
            witness.refute(index, row)
        gone = index.drop(file_id)
        for one in gone:
            _removed(folder.span(one), folder.files)
        for pack in index.packs.drop_all_empty():
            _removed(folder.pack(pack), folder.files)
    return len(gone)


def _remove_beside_pack(index: Index, folder: StoreFolder, file_id: str) -> int:
    """Remove the file of a span that is in a pack by now: the packer was killed before it did.

    A live packer still does it, and claims the pack until then.
    """
    row = index.row(file_id)
    if row is None or not row.pack or is_being_made(folder, row.pack):
        return 0
    with index.transaction():
        row = index.row(file_id)
        if row is None or not row.pack or is_gone(folder.pack(row.pack)):
            return 0
        return _removed(folder.span(file_id), folder.files)


def is_being_made(folder: StoreFolder, pack: str) -> bool:
    """True if the maker of a pack is still at work: it removes the packed files next."""
    with looked_at(folder.pack(pack)) as claim:
        return claim is Claim.HELD


def _orphan_packs(index: Index, folder: StoreFolder, packs: Iterable[str], *, every: bool) -> int:
    """Packs that the index does not know: spans of theirs that it lacks are taken in.

    Mostly it lacks none, and the pack is removed: its maker was killed before it was entered.
    """
    swept = 0
    for pack in packs:
        found: list[Candidate] | None = []
        if index.packs.get(pack) is None:
            with suppress(DamagedSpan):
                found = _told_by_pack(folder, pack)
            if found is not None and _take_in_pack(index, folder, pack, found, every=every):
                swept += 1
    return swept


def _told_by_pack(folder: StoreFolder, pack: str) -> list[Candidate] | None:
    """A pack's record of its spans; None if it is gone or can't be judged now."""
    try:
        return candidates(folder, folder.pack(pack), pack)
    except (OSError, UnknownKind):
        return None


def _take_in_pack(
    index: Index, folder: StoreFolder, pack: str, found: Sequence[Candidate], *, every: bool
) -> bool:
    """True if a pack is in the index now, or is removed."""
    path = folder.pack(pack)
    with index.transaction():
        # A pack is published and entered in one transaction.
        if index.packs.get(pack) is not None or is_gone(path):
            return False
        rows = [index.row(one.row.file_id) for one in found]
        if any(row is not None and row.pack == pack for row in rows):
            raise DamagedIndex(f"it has spans in pack {pack} and not the pack")
        missing = [one for one, row in zip(found, rows, strict=True) if row is None]
        if missing and enter_pack(index, pack, missing, path.lstat().st_size):
            return True
        if missing or not found:
            return (every or _is_stale(path, folder.files)) and _removed(path, folder.files)
        return _removed(path, folder.files)


def enter_pack(index: Index, pack: str, found: Sequence[Candidate], size: int) -> bool:
    """Enter a pack with those of its spans that fit, in a transaction; False if none does."""
    index.packs.put(pack, size)
    for row, layout, label in found:
        parent = index.row(row.parent) if row.parent else None
        if hangs(row, parent) and (parent is not None or not row.parent):
            index.add(row, layout, label)
    return not index.packs.drop_empty([pack])


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
            found += candidates(folder, folder.span(file_id))
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
    """True if a file was removed now; one that can't be removed holds up nothing else."""
    with suppress(OSError):
        return files.unlink(path)
    return False


def _take_in(index: Index, folder: StoreFolder, found: Candidate, witness: Witness) -> bool:
    """True if a file is in the index now, or need not be any more.

    Before it counts as unfit, the files of the rows in its way are asked.
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
    """True if a file is old; the clock may have jumped either way."""
    with suppress(OSError):
        return abs(files.now() - path.lstat().st_mtime) > STALE_SECONDS
    return False
