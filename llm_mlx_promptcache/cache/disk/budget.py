"""Evictions from a shared folder, in order: in steps of few rows, a transaction each.

A step takes leaves from ordered indexes, so it costs as much as it removes, whatever is stored and
however deep it hangs; between two steps every process reads and writes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from ..sizes import parse_size
from ..worth import StoredOrder, stored_weight, worth
from .damage import DamagedIndex
from .index_rows import typed

if TYPE_CHECKING:
    from sqlite3 import Connection

    from .index import Index
    from .witness import Witness

ROWS: Final = 64  # that one transaction removes

# A row's `bucket` is all of `worth`'s arguments but the age: rows of one bucket keep their order.
# It is (tier * 2 + returned) * _RANK + density_bucket.
_RANK: Final = 65_536

_NEXT_BUCKET = """
SELECT bucket FROM spans WHERE children = 0 AND pinned = ? AND bucket > ?
ORDER BY bucket LIMIT 1
"""
_HEAD = """
SELECT last_use, file_id, parent, bytes, pack FROM spans
WHERE children = 0 AND pinned = ? AND bucket = ? ORDER BY last_use, file_id LIMIT 1
"""
_LEAF_BUCKET = "SELECT bucket FROM spans WHERE file_id = ? AND children = 0 AND pinned = ?"
_LEAVES = """
SELECT file_id, bytes, pack FROM spans
WHERE namespace = ? AND children = 0 AND pinned <= ? AND used_at < ? ORDER BY used_at LIMIT ?
"""
_CHILD = "SELECT file_id FROM spans WHERE parent = ? LIMIT 1"
# Whether something hangs on a span, and whether that hangs on something.
_PLACE = """
SELECT EXISTS (SELECT 1 FROM spans WHERE parent = s.file_id),
    parent = '' OR EXISTS (SELECT 1 FROM spans WHERE file_id = s.parent)
FROM spans AS s WHERE file_id = ?
"""
_ANY = "SELECT 1 FROM spans WHERE namespace = ? LIMIT 1"
_PACK = "SELECT pack FROM spans WHERE file_id = ?"
_REMOVE = "DELETE FROM spans WHERE file_id = ?"
_ANY_AGE: Final = 1 << 62


class Removed(NamedTuple):
    """The rows that one step removed; their files are removed next. `done`: nothing is left.

    `unpinned`: those of them that were removed because nobody has pinned them. `packs`: those that
    have no span left, and are removed as well.
    """

    file_ids: list[str]
    nbytes: int
    done: bool
    unpinned: Sequence[str] = ()
    packs: Sequence[str] = ()


class Removal(Protocol):
    """Rows that are to be removed, some of them at a time."""

    def step(self, index: Index) -> Removed:
        """Remove up to `ROWS` rows, inside a transaction of the caller's."""


class Excess:
    """The bytes of a folder beyond `most`: first spans nobody opens any more, then by worth."""

    def __init__(self, most: int, order: StoredOrder = StoredOrder.RECENCY) -> None:
        self._most = most
        self._order = order

    def step(self, index: Index) -> Removed:
        """The least worthy leaves, by memory's own comparison; pinned ones only last."""
        excess = index.totals().held - self._most
        taken = _superseded(index, excess)
        file_ids = taken.file_ids
        unpinned = len(file_ids)
        for pinned in (False, True):
            leaves = _Leaves(index, self._order, pinned=pinned)
            while taken.nbytes < excess and len(file_ids) < ROWS:
                found = leaves.take()
                if found is None:
                    break
                taken.add(index, found.file_id, found.nbytes, found.pack)
            unpinned = unpinned if pinned else len(file_ids)
        if taken.nbytes < excess and not file_ids and index.totals().spans:
            raise DamagedIndex("it holds spans of which none is the last of its path")
        done = taken.nbytes >= excess or not file_ids
        return Removed(file_ids, taken.nbytes, done, file_ids[:unpinned], taken.packs)


class _Taken:
    """Rows that were removed, and the bytes that are free once their files are removed.

    A span in a pack frees nothing before the last of the pack's spans is removed.
    """

    def __init__(self) -> None:
        self.file_ids: list[str] = []
        self.packs: list[str] = []
        self.nbytes = 0

    def add(self, index: Index, file_id: str, nbytes: int, pack: str) -> None:
        """Add a removed row that had so many bytes of its own, or of a pack."""
        self.file_ids.append(file_id)
        whole = index.packs.get(pack) if pack else None
        if whole is None:
            self.nbytes += 0 if pack else nbytes
        elif index.packs.drop_empty([pack]):
            self.packs.append(pack)
            self.nbytes += whole.bytes


class Chosen:
    """All spans of some namespaces; or those unused since a time, unless pinned.

    A span stays while something younger or pinned hangs on it.
    """

    def __init__(
        self, namespaces: Sequence[str], used_before: int | None, witness: Witness | None = None
    ) -> None:
        self._namespaces = deque(namespaces)
        self._witness = witness
        self._pinned = used_before is None
        self._before = _ANY_AGE if used_before is None else used_before

    def step(self, index: Index) -> Removed:
        """Remove the oldest leaves; their parents may be leaves in the next step, or this one."""
        file_ids: list[str] = []
        packs: set[str] = set()
        nbytes = 0
        while self._namespaces and len(file_ids) < ROWS:
            values = (self._namespaces[0], self._pinned, self._before, ROWS - len(file_ids))
            leaves = index.db.execute(_LEAVES, values).fetchall()
            if not leaves:
                if self._pinned and index.db.execute(_ANY, (self._namespaces[0],)).fetchone():
                    raise DamagedIndex("none of a model's spans is the end of a path")
                self._namespaces.popleft()
            for file_id, _, _ in leaves:
                _refuse_inner(index.db, file_id)
                _ask(index, self._witness, file_id)
            index.db.executemany(_REMOVE, [(file_id,) for file_id, _, _ in leaves])
            file_ids += [file_id for file_id, _, _ in leaves]
            nbytes += sum(size for _, size, _ in leaves)
            packs |= {pack for _, _, pack in leaves}
        unpinned = () if self._pinned else file_ids
        done, gone = not self._namespaces, index.packs.drop_empty(packs)
        return Removed(file_ids, nbytes, done, unpinned, gone)


class Below:
    """A span and all that hangs on it, the ends first."""

    def __init__(self, file_id: str, witness: Witness | None = None) -> None:
        self._witness = witness
        self._path = [file_id]
        self._on_path = {file_id}

    def step(self, index: Index) -> Removed:
        """Go on where the last step ended; others may have removed or added some meanwhile."""
        file_ids: list[str] = []
        packs: set[str] = set()
        while self._path and len(file_ids) < ROWS:
            child = index.db.execute(_CHILD, (self._path[-1],)).fetchone()
            # A damaged index may have a span hang below itself.
            if child is not None and child[0] not in self._on_path:
                # Before anything below it is removed: it may not hang here at all.
                _ask(index, self._witness, child[0])
                self._path.append(child[0])
                self._on_path.add(child[0])
                continue
            file_id = self._path.pop()
            self._on_path.remove(file_id)
            held = index.db.execute(_PACK, (file_id,)).fetchone()
            if held is not None and index.db.execute(_REMOVE, (file_id,)).rowcount:
                file_ids.append(file_id)
                packs.add(held[0])
        return Removed(file_ids, 0, not self._path, packs=index.packs.drop_empty(packs))


class _Leaf(NamedTuple):
    last_use: int
    file_id: str
    parent: str
    nbytes: int
    pack: str


class _Leaves:
    """The leaves that would be evicted next, one a bucket, and the least worthy of them."""

    def __init__(self, index: Index, order: StoredOrder, *, pinned: bool) -> None:
        self._db = index.db
        self._order = order
        self._pinned = pinned
        self._tick = index.totals().tick
        self._heads: dict[int, _Leaf] = {}
        self._started = False

    def take(self) -> _Leaf | None:
        """Remove the leaf of the least worth; None if there is none."""
        if not self._started:
            self._started = True
            bucket = -_ANY_AGE
            while found := self._db.execute(_NEXT_BUCKET, (self._pinned, bucket)).fetchone():
                (bucket,) = typed(found, int)
                self._look(bucket)
        if not self._heads:
            return None
        bucket = min(self._heads, key=self._value)
        leaf = self._heads[bucket]
        _refuse_inner(self._db, leaf.file_id)
        self._db.execute(_REMOVE, (leaf.file_id,))
        self._look(bucket)
        above = self._db.execute(_LEAF_BUCKET, (leaf.parent, self._pinned)).fetchone()
        if above is not None:  # what it hung on is a leaf now
            self._look(above[0])
        return leaf

    def _look(self, bucket: int) -> None:
        found = self._db.execute(_HEAD, (self._pinned, bucket)).fetchone()
        if found is None:
            self._heads.pop(bucket, None)
        else:
            self._heads[bucket] = _Leaf(*typed(found, int, str, str, int, str))

    def _value(self, bucket: int) -> tuple[float, int, int]:
        rank = (bucket + _RANK // 2) // _RANK
        last_use = self._heads[bucket].last_use
        if self._order is StoredOrder.LRU:
            return last_use, bucket, last_use
        age, density_bucket = self._tick - last_use, bucket - rank * _RANK
        return _worth(self._order, age, rank, density_bucket), bucket, last_use


def _refuse_inner(db: Connection, file_id: str) -> None:
    """DamagedIndex if a row said to end a path does not: good spans would be removed."""
    found = db.execute(_PLACE, (file_id,)).fetchone()
    if found != (0, 1):
        raise DamagedIndex(f"span {file_id} is said to be the end of a path and is not")


def _ask(index: Index, witness: Witness | None, file_id: str) -> None:
    """DamagedIndex if a row's file says otherwise."""
    row = index.row(file_id) if witness is not None else None
    if witness is not None and row is not None:
        witness.refute(index, row)


def _worth(order: StoredOrder, age: int, rank: int, density_bucket: int) -> float:
    tier, found = divmod(rank, 2)
    try:
        weight = stored_weight(order, tier, found=bool(found))
        return worth(max(age, 0), weight, density_bucket)
    except OverflowError:  # no row of ours: it is the first to be evicted
        return 0.0


def _superseded(index: Index, excess: int) -> _Taken:
    """Remove up to `excess` bytes of spans that nobody can open any more, except pinned ones."""
    taken = _Taken()
    for namespace in index.namespaces.superseded() if excess > 0 else ():
        while taken.nbytes < excess and len(taken.file_ids) < ROWS:
            values = (namespace, False, _ANY_AGE, ROWS - len(taken.file_ids))
            leaves = index.db.execute(_LEAVES, values).fetchall()
            if not leaves:
                break
            for file_id, size, pack in (typed(leaf, str, int, str) for leaf in leaves):
                if taken.nbytes >= excess:
                    break
                _refuse_inner(index.db, file_id)
                index.db.execute(_REMOVE, (file_id,))
                taken.add(index, file_id, size, pack)
    return taken


class FolderBudget:
    """The bytes that a folder may hold: a given number, or as many as the disk can well spare."""

    MOST: Final = 20_000_000_000  # and no more than a tenth of the free space
    FREE_SHARE: Final = 10
    LEAST_FREE: Final = 1_000_000_000  # the watermark, and no more than a twentieth of the disk
    DISK_SHARE: Final = 20
    SECONDS: Final = 60.0

    def __init__(self, given: int | str | None) -> None:
        self._given = None if given is None else parse_size(given, "max_bytes")
        self._asked = float("-inf")
        self._found = 0

    def most(self, held: int, space: Callable[[], tuple[int, int]]) -> int:
        """The budget of a folder that holds so much; `space` returns the disk's free and all bytes.

        Every process's writes change the free space, so it is asked for once a minute.
        """
        if self._given is not None:
            return self._given
        if time.monotonic() - self._asked > self.SECONDS:
            # The answer first: a thread that comes meanwhile must not take the old one for new.
            self._found = min(self.MOST, (space()[0] + held) // self.FREE_SHARE)
            self._asked = time.monotonic()
        return self._found

    def lacking(self, space: Callable[[], tuple[int, int]]) -> int:
        """Bytes below the watermark; 0 if a budget was given."""
        if self._given is not None:
            return 0
        free, size = space()
        return min(self.LEAST_FREE, size // self.DISK_SHARE) - free
