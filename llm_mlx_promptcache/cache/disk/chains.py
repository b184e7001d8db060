"""Files that are to become one pack: runs of spans on each other's ends, nothing else.

A run ends at a pin, so that pinned spans never share a file with evictable ones, and at a fork in
use, so that no reader of one branch reads the other's rows. It is decided by rows without their
tokens; the packer checks the files.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

MOST_PACK: Final = 1 << 30  # bytes
BUDGET_SHARE: Final = 16  # a pack has at most this part of the budget: it goes as a whole
CODED_AFTER: Final = 86_400  # seconds without use after which spans are coded
LEAST_FILES: Final = 4  # that are packed while a conversation may go on
_GROWTH: Final = 2  # a file is packed again once its followers have half its bytes


class Link(NamedTuple):
    """A span's row without its tokens."""

    file_id: str
    parent: str
    start: int
    length: int
    nbytes: int
    pack: str
    pinned: bool
    hits: int
    last_use: int
    used_at: int

    @property
    def end(self) -> int:
        """The token behind its last one."""
        return self.start + self.length


class ChainFile(NamedTuple):
    """A file of a run, and its spans."""

    links: list[Link]

    @property
    def pack(self) -> str:
        """The pack that it is, "" for a span's own file."""
        return self.links[0].pack

    @property
    def nbytes(self) -> int:
        """The bytes of its spans."""
        return sum(link.nbytes for link in self.links)


class Thrift(NamedTuple):
    """The limits of packing: files of at most `most` bytes, with spans unused since `used_before`.

    `growing`: the conversation may go on, so large files wait until it pays to copy them again.
    Spans unused since `coded_before` are coded too.
    """

    most: int
    used_before: int
    growing: bool
    coded_before: int = -1


def to_pack(links: Iterable[Link], thrift: Thrift) -> Iterator[list[ChainFile]]:
    """The files of each pack to make; those of one namespace."""
    held = [link for link in links if link.length]
    for run in _runs(held):
        for units in _parted(_units(run, held), thrift.most):
            used_at = max((link.used_at for unit in units for link in unit.links), default=0)
            growing = thrift.growing and used_at > thrift.coded_before
            chosen = _tail(units) if growing else units
            least = LEAST_FILES if growing else 2
            rested = used_at <= thrift.used_before
            if (len(chosen) >= least and rested) or (units and used_at <= thrift.coded_before):
                yield chosen


def _runs(links: Sequence[Link]) -> Iterator[list[Link]]:
    """Spans that hang on each other's ends, as far as they belong together."""
    below: defaultdict[str, list[Link]] = defaultdict(list)
    for link in links:
        below[link.parent].append(link)
    heirs = {link.file_id: _heir(link, below[link.file_id]) for link in links}
    inherited = {heir.file_id for heir in heirs.values() if heir is not None}
    for link in links:
        if link.file_id in inherited:
            continue
        run: list[Link] = []
        following: Link | None = link
        while following is not None:
            run.append(following)
            following = heirs[following.file_id]
        yield run


def _heir(link: Link, below: Sequence[Link]) -> Link | None:
    """The span that goes on with this one's path in the same pack, if any may."""
    if link.pinned:
        return None
    ends = [one for one in below if one.start == link.end]
    heir = max(ends, key=lambda one: (one.hits > 0, one.last_use, one.file_id), default=None)
    in_use = any(one.hits for one in below if one is not heir)
    return None if in_use else heir


def _units(run: Sequence[Link], links: Sequence[Link]) -> Iterator[list[ChainFile]]:
    """The files of a run; it ends at a pack with spans outside of it."""
    sizes = Counter(link.pack for link in links)
    found: list[ChainFile] = []
    for link in run:
        if link.pack and found and found[-1].pack == link.pack:
            found[-1].links.append(link)
        else:
            found.append(ChainFile([link]))
    whole: list[ChainFile] = []
    for unit in found:
        if unit.pack and len(unit.links) != sizes[unit.pack]:
            yield whole
            whole = []
        else:
            whole.append(unit)
    yield whole


def _parted(runs: Iterable[list[ChainFile]], most: int) -> Iterator[list[ChainFile]]:
    """The files of runs in groups of so many bytes at most."""
    for run in runs:
        group: list[ChainFile] = []
        held = 0
        for unit in run:
            if group and held + unit.nbytes > most:
                yield group
                group, held = [], 0
            group.append(unit)
            held += unit.nbytes
        yield group


def _tail(units: Sequence[ChainFile]) -> list[ChainFile]:
    """The last files, none of which is much larger than all that follow it."""
    tail: list[ChainFile] = []
    held = 0
    for unit in reversed(units):
        if tail and unit.nbytes > _GROWTH * held:
            break
        tail.insert(0, unit)
        held += unit.nbytes
    return tail
