"""Compaction: files of one path become a pack, a read or a write at a time, when nobody waits.

The rules are those of writing: a new file, synced; then one transaction that gives it its name and
enters its spans; then the old files are removed. A kill anywhere leaves every span whole in the one
or in the other, and nothing else changes: children of a span hang on its tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from ..span import DamagedSpan, StoredSpan
from . import content
from .chains import ChainFile, Link, Thrift, to_pack
from .descriptors import Few
from .index_rows import typed
from .unpublished import NotPublished

if TYPE_CHECKING:
    from .folder import StoreFolder
    from .index import Index
    from .pack_file import PackSource, UnpublishedPack
    from .packs import PackRow
    from .shared_index import SharedIndex
    from .upkeep import Upkeep

_LINKS = """
SELECT file_id, parent, start, count, bytes, pack, pinned, hits, last_use, used_at FROM spans
WHERE namespace = ?
"""
_NO_LINKS: list[Link] = []
_PACK_LINKS = """
SELECT file_id, parent, start, count, bytes, pack, pinned, hits, last_use, used_at FROM spans
WHERE pack = ? AND pack != '' ORDER BY start
"""


class Compacted(NamedTuple):
    """The progress so far: so many files became so many packs."""

    files: int = 0
    packs: int = 0

    def after(self, units: Sequence[ChainFile]) -> Compacted:
        """The progress with one pack more, of these files."""
        return Compacted(self.files + len(units), self.packs + 1)


class DamagedSource(Exception):
    """A file to be packed is damaged; `span` is the first that is lost with it."""

    def __init__(self, span: StoredSpan, error: DamagedSpan) -> None:
        super().__init__(str(error))
        self.span = span
        self.error = error


class _Changed(Exception):
    """The files to be packed are no longer as they were planned."""


class Compaction:
    """Packs a folder's files."""

    def __init__(self, folder: StoreFolder, index: SharedIndex, upkeep: Upkeep) -> None:
        self._folder = folder
        self._index = index
        self._upkeep = upkeep
        self._apart: set[str] = set()  # spans that were seen to lack rows, so they stay files

    def chains(self, thrift: Thrift) -> Iterator[list[ChainFile]]:
        """Groups of files that are to become a pack each, as the index is now."""
        nothing: list[str] = []
        for namespace in self._index.run(_namespaces, nothing):
            known = -1
            while known != len(self._apart):  # again without those that were found on the way
                known = len(self._apart)
                links = self._index.run(partial(_links, query=_LINKS, of=namespace), _NO_LINKS)
                yield from to_pack([x for x in links if x.file_id not in self._apart], thrift)

    def wasteful(self, *, every: bool) -> Iterator[list[ChainFile]]:
        """Packs with many dead bytes, or, if `every`, with any."""
        nothing: list[PackRow] = []
        for pack in self._index.run(lambda index: index.packs.all(), nothing):
            if pack.spans and (pack.dead if every else pack.is_wasteful):
                found = partial(_links, query=_PACK_LINKS, of=pack.file_id)
                links = self._index.run(found, _NO_LINKS)
                if links:
                    yield [ChainFile(links)]

    def packed(self, units: Sequence[ChainFile], coded_before: int) -> Iterator[bool]:
        """Make one pack of these files: False behind each step, True once it stands.

        Spans unused since then are coded, and coded ones stay so. If the files have changed it ends
        without a pack. DamagedSource for a file that is damaged, OSError if the disk can't take it.
        """
        with ExitStack() as stack:
            try:
                few = Few()
                sources = []
                for unit in units:
                    sources.append(self._source(unit, few, stack))
                    yield False
                if not self._apart.isdisjoint(unit.links[0].file_id for unit in units):
                    return
                _check_path(sources)
                rested = all(x.used_at <= coded_before for unit in units for x in unit.links)
                new = rested and content.can_code(sources)
                coded = new or any(source.file.coded for source in sources)
                if len(units) == 1 and not new and not _has_dead(units, sources):
                    return
                pack = stack.enter_context(self._unpublished(units, sources, few, coded=coded))
                for _ in self._written(pack, units, sources):
                    yield False
                if self._entered(pack, units):
                    self._remove(units)
                    yield True
            except (_Changed, FileNotFoundError):  # evicted, cleared or packed by somebody else
                return

    def _source(self, unit: ChainFile, few: Few, stack: ExitStack) -> PackSource:
        first = unit.links[0]
        few.make_room()
        try:
            file = content.opened(self._folder.place(first.file_id, unit.pack), self._folder.files)
        except DamagedSpan as error:
            raise DamagedSource(_stored(first), error) from None
        stack.callback(file.close)
        few.use(file)
        if not content.holds_every_row(file):
            self._apart.add(first.file_id)
        found = content.source(file, [link.file_id for link in unit.links])
        if found is None:
            raise _Changed
        return found

    def _unpublished(
        self,
        units: Sequence[ChainFile],
        sources: Sequence[PackSource],
        few: Few,
        *,
        coded: bool,
    ) -> UnpublishedPack:
        try:
            return content.unpublished_pack(
                self._folder.spans, sources, few, self._folder.files, coded=coded
            )
        except DamagedSpan as error:
            raise _blamed(units, sources, error) from None

    def _written(
        self, pack: UnpublishedPack, units: Sequence[ChainFile], sources: Sequence[PackSource]
    ) -> Iterator[None]:
        try:
            yield from pack.written()
        except DamagedSpan as error:
            raise _blamed(units, sources, error) from None

    def _entered(self, pack: UnpublishedPack, units: Sequence[ChainFile]) -> bool:
        """Publish and enter the pack; False if its spans have changed."""
        try:
            return self._index.run(lambda index: self._enter(index, pack, units), otherwise=False)
        except NotPublished as error:
            raise error.why from None

    def _enter(self, index: Index, pack: UnpublishedPack, units: Sequence[ChainFile]) -> bool:
        links = [link for unit in units for link in unit.links]
        shares = content.shares_of(pack.size, [link.length for link in links])
        try:
            with index.durable_transaction():
                rows = [index.row(link.file_id) for link in links]
                for link, row in zip(links, rows, strict=True):
                    if row is None or (row.pack, row.bytes) != (link.pack, link.nbytes):
                        return False
                index.packs.put(pack.file_id, pack.size)
                for row, share in zip(rows, shares, strict=True):
                    if row is not None:
                        index.move(row._replace(bytes=share, pack=pack.file_id))
                index.packs.drop_empty({unit.pack for unit in units})
                pack.publish_durably()
        except BaseException:
            pack.withdraw()
            raise
        return True

    def _remove(self, units: Sequence[ChainFile]) -> None:
        """Remove the files of a new pack; a process killed here leaves them to the sweep."""
        for unit in units:
            path = self._folder.place(unit.links[0].file_id, unit.pack)
            try:
                self._folder.files.unlink(path)
            except OSError as error:
                self._upkeep.not_removed(error)


def _has_dead(units: Sequence[ChainFile], sources: Sequence[PackSource]) -> bool:
    pairs = zip(units, sources, strict=True)
    return any(len(unit.links) < len(source.file.heads) for unit, source in pairs)


def _namespaces(index: Index) -> list[str]:
    """The namespaces whose spans can be packed."""
    return [
        known.name
        for known in index.namespaces.all()
        if index.some_of(known.name, 1) and content.can_pack(known.layout)
    ]


def _links(index: Index, query: str, of: str) -> list[Link]:
    return [_link(values) for values in index.db.execute(query, (of,)).fetchall()]


def _link(values: Sequence[object]) -> Link:
    checked = typed(values, str, str, int, int, int, str, int, int, int, int)
    file_id, parent, start, length, nbytes, pack, pinned, *counted = checked
    return Link(file_id, parent, start, length, nbytes, pack, pinned != 0, *counted)


def _check_path(sources: Sequence[PackSource]) -> None:
    """_Changed unless each file goes on where the one before it ends, by their headers."""
    heads = [head for source in sources for head in source.heads]
    for before, head in pairwise(heads):
        end = before.start + len(before.tokens)
        same = (head.namespace, head.layout) == (before.namespace, before.layout)
        if not same or head.start != end:
            raise _Changed
    ids = [member.file_id for source in sources for member in source.members]
    if [head.parent for head in heads[1:]] != ids[:-1]:
        raise _Changed


def _blamed(
    units: Sequence[ChainFile], sources: Sequence[PackSource], error: DamagedSpan
) -> DamagedSource:
    """The error as one of the file that caused it."""
    for unit, source in zip(units, sources, strict=True):
        if source.file.broken is not None:
            return DamagedSource(_stored(unit.links[0]), source.file.broken)
    raise error


def _stored(link: Link) -> StoredSpan:
    return StoredSpan(link.file_id, link.start, link.end, parent=link.parent, pack=link.pack)
