"""An index that is new, lost or damaged, rebuilt from the heads of the spans' files.

It is built beside, under a private name, and renamed when it is whole, so nobody waits for it or
sees half of one; lookups miss meanwhile. One process does it, under the folder's lock.
"""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
import stat
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..layers.errors import UnknownKind
from ..span import DamagedSpan
from .damage import said_of_index
from .file_ids import file_ids_in, packs_in
from .files import locked
from .folder import StoreFolder
from .index import Index
from .index_rows import SpanRow
from .index_schema import BESIDE
from .pins import Pins
from .sweep import Candidate, candidates, hangs

_log = logging.getLogger(__name__)

_NEW: Final = "index.new"
_FOLDER: Final = "set-aside"  # the new name of a foreign folder in our place
SHORT_PATIENCE: Final = 0.05  # seconds: no more is that of a lookup
Inode = tuple[int, int]


def inode_of(path: Path) -> Inode | None:
    """The file at a path, whatever its type; None if there is none."""
    with suppress(OSError):
        status = path.lstat()
        return status.st_dev, status.st_ino
    return None


class Mending(threading.Thread):
    """A new index in place of the `damaged` one, or of none (None), made in a thread of its own.

    So callers that can't wait need not. `working`: this process is at it; until then another one
    may be.
    """

    def __init__(
        self, folder: StoreFolder, pins: Pins, damaged: Inode | None, why: Exception | None
    ) -> None:
        super().__init__(name="index-mending", daemon=True)
        self._folder = folder
        self._pins = pins
        self._damaged = damaged
        self._why = why
        self.working = False
        self.error: Exception | None = None

    def run(self) -> None:
        """Make it, unless another process was faster."""
        folder = self._folder.path
        try:
            with locked(folder, wait=False) as alone:
                if alone:
                    self._work()
                    return
            with locked(folder) as alone:
                if not alone:
                    raise OSError(f"{folder} can't be locked to mend its index")
                self._work()
        except (OSError, sqlite3.Error) as error:
            self.error = error

    def _work(self) -> None:
        self.working = True
        if inode_of(self._folder.index) in (None, self._damaged):
            _put_aside(self._folder)
            self._tell(_build(self._folder, self._pins))

    def finished(self, patience: float) -> bool:
        """True if it is done in so long; callers other than lookups wait out this process's work.

        OSError or sqlite3.Error if it failed.
        """
        self.join(patience)
        if self.is_alive() and self.working and patience > SHORT_PATIENCE:
            self.join()
        if self.is_alive():
            return False
        if self.error is not None:
            raise self.error
        return True

    def _tell(self, taken: int) -> None:
        folder = self._folder.path
        if self._why is not None:
            _log.warning(
                "the index in %s %s and is made anew from %d files",
                folder,
                said_of_index(self._why),
                taken,
            )
        elif taken:
            _log.warning("the index in %s was lost; rebuilt from %d files", folder, taken)


def _put_aside(folder: StoreFolder) -> None:
    """Keep a damaged index for later inspection: a plain file, for its owner alone."""
    path = folder.index
    with suppress(FileNotFoundError):
        status = path.lstat()
        try:
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                raise OSError("not worth keeping")
            path.chmod(0o600)
            path.replace(folder.set_aside)
        except OSError:
            _remove(path)
    _remove_beside(path)


def _build(folder: StoreFolder, pins: Pins) -> int:
    """Make an index and publish it; returns the number of files it took in."""
    private = folder.index.with_name(_NEW)
    _remove(private)
    _remove_beside(private)
    index = Index(private, new=True)
    try:
        taken = _fill(index, folder, pins)
        if why := index.log.empty():
            raise sqlite3.OperationalError(f"its log is not in it yet: {why}")
    finally:
        index.close()
    _remove_beside(folder.index)  # SQLite would take a log that lies there for the new one's
    private.replace(folder.index)
    return taken


def _fill(index: Index, folder: StoreFolder, pins: Pins) -> int:
    waiting: dict[str, list[Candidate]] = {}
    packs, seen = set(), set()
    # Packs first: who made one was killed, maybe, before what it was made of was removed.
    for path, pack in _files(folder):
        with suppress(OSError, DamagedSpan, UnknownKind):
            found = candidates(folder, path, pack)
            packs |= {(pack, path.lstat().st_size)} if pack else set()
            for one in found:
                if one.row.file_id not in seen:
                    seen.add(one.row.file_id)
                    waiting.setdefault(one.row.parent, []).append(one)
    parents = [""]
    taken: dict[str, SpanRow] = {}
    with index.transaction():
        for pack, size in packs:
            index.packs.put(pack, size)
        while parents:
            # Of two that begin alike (one was stored again while the index lied) the fuller stays.
            here = waiting.pop(parents.pop(), [])
            here.sort(key=lambda found: -len(waiting.get(found.row.file_id, ())))
            for row, layout, label in here:
                if hangs(row, taken.get(row.parent)) and index.add(row, layout, label):
                    taken[row.file_id] = row
                    parents.append(row.file_id)
        index.packs.drop_all_empty()
        with suppress(OSError):  # a sweep reads it again
            pins.into(index)
    return len(taken)


def _files(folder: StoreFolder) -> list[tuple[Path, str]]:
    """The files that hold spans, each with its id as a pack, or ""."""
    names = folder.names()
    packs = [(folder.pack(pack), pack) for pack in sorted(packs_in(names))]
    return packs + [(folder.span(file_id), "") for file_id in sorted(file_ids_in(names))]


def _remove_beside(path: Path) -> None:
    for ending in BESIDE:
        _remove(path.with_name(path.name + ending))


def _remove(path: Path) -> None:
    """Remove anything that has our name; a folder with content keeps it elsewhere."""
    with suppress(FileNotFoundError):
        if not stat.S_ISDIR(path.lstat().st_mode):
            path.unlink()
            return
        try:
            path.rmdir()
        except OSError:
            path.rename(path.with_name(f"{_FOLDER}-{secrets.token_hex(4)}"))
