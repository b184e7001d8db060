"""`doctor`'s lines about the user's folders, the disk under them and the index."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..cache.disk.marks import marks_of
from ..cache.sizes import format_size
from ..config import load_settings
from ..engine.pool import DISK_SWITCH, uses_disk
from .doctor_diagnosis import Diagnosis, Health
from .shown import counted

if TYPE_CHECKING:
    from ..cache.disk.store import DiskStore

_FOLDERS, _DISK = "folders", "disk"
_MOST_FILES: Final = 100_000
_MOST_READ: Final = 1 << 30  # bytes of spans that are read and verified here
_LITTLE: Final = 2_000_000_000  # bytes free: the cache takes a tenth of them


def folder_diagnoses(cache: Path, data: Path) -> Iterator[Diagnosis]:
    """Owners of the folders and their files; settings that can't be read."""
    yield folder_of_ours("cache", cache, 0o077)
    yield folder_of_ours("models and settings", data, 0o022)
    yield files_of_ours(cache)
    yield backups_of(cache)
    try:
        load_settings()
    except ValueError as error:
        yield Diagnosis(
            _FOLDERS, "settings", str(error), Health.WRONG, "correct or remove that file"
        )


def folder_of_ours(what: str, folder: Path, others: int) -> Diagnosis:
    """One folder: there, this user's, and without those rights for `others`."""
    what = f"folder of {what}"
    try:
        found = folder.stat()
    except OSError as error:
        said = f"{folder} can't be looked at ({error.strerror})"
        return Diagnosis(_FOLDERS, what, said, Health.WRONG, "make it, or move it to where you may")
    mode = stat.S_IMODE(found.st_mode)
    told = {"mode": f"{mode:o}", "owner": "you" if found.st_uid == os.geteuid() else "another"}
    if found.st_uid != os.geteuid():
        said = f"{folder} belongs to user {found.st_uid}"
        todo = "sudo made it, most often: give it back with chown"
        return Diagnosis(_FOLDERS, what, said, Health.WRONG, todo, told)
    if not os.access(folder, os.W_OK | os.X_OK):
        said = f"{folder} can't be written (mode {mode:o})"
        return Diagnosis(_FOLDERS, what, said, Health.WRONG, f"chmod u+rwx {folder}", told)
    if mode & others:
        said = f"{folder} is open to others (mode {mode:o})"
        return Diagnosis(_FOLDERS, what, said, Health.WRONG, f"chmod 700 {folder}", told)
    return Diagnosis(_FOLDERS, what, f"{folder}, mode {mode:o}, yours", figures=told)


def files_of_ours(folder: Path) -> Diagnosis:
    """All files of the cache: whose they are, and whether others may read any of them."""
    count = wrong = 0
    for path in islice(_files_below(folder), _MOST_FILES):
        with suppress(FileNotFoundError):  # evicted or packed meanwhile
            found = path.lstat()
            count += 1
            wrong += found.st_uid != os.geteuid() or bool(found.st_mode & 0o077)
    told = {"files": count, "open": wrong}
    if not wrong:
        said = f"{counted(count, 'file')}, which only you can read"
        return Diagnosis(_FOLDERS, "files of the cache", said, figures=told)
    said = f"{wrong} of {counted(count, 'file')} can be read by others, or are somebody else's"
    todo = f"chmod -R go= {folder}; what is not yours: chown"
    return Diagnosis(_FOLDERS, "files of the cache", said, Health.WRONG, todo, told)


def backups_of(folder: Path) -> Diagnosis:
    """The marks by which backups leave a cache out."""
    what, found = "backups", marks_of(folder)
    told = {"tag": found.tag, "excluded": found.excluded}
    if not any(_files_below(folder)):
        return Diagnosis(_FOLDERS, what, "nothing is stored yet", figures=told)
    if found.excluded is False:
        todo = f"the next prompt that is stored tells it; if not, tmutil addexclusion {folder}"
        return Diagnosis(_FOLDERS, what, "Time Machine has the cache", Health.NOTE, todo, told)
    if not found.tag:
        todo = "the next prompt that is stored writes it"
        said = "no CACHEDIR.TAG, so backups may have the cache"
        return Diagnosis(_FOLDERS, what, said, Health.NOTE, todo, told)
    also = " and Time Machine" if found.excluded else ""
    said = f"CACHEDIR.TAG{also}: they leave the cache out"
    return Diagnosis(_FOLDERS, what, said, figures=told)


def _files_below(folder: Path) -> Iterator[Path]:
    """The plain files of the cache and those of its spans; the host's folder keeps its own."""
    for each in (folder, folder / "spans"):
        for path in _inside(each):
            with suppress(OSError):  # gone meanwhile, or in a folder that may only be listed
                if stat.S_ISREG(path.lstat().st_mode):
                    yield path


def _inside(folder: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from folder.iterdir()


def disk_diagnoses(store: DiskStore) -> Iterator[Diagnosis]:
    """Room on the disk, its file system, and the index."""
    index = index_of(store)  # first: any look at a damaged index mends it, and this one tells so
    yield room(store)
    yield index


def room(store: DiskStore) -> Diagnosis:
    """Bytes that are free, those that the cache may have, and the file system."""
    from ..cache.disk.files import Files, is_remote

    files = Files()
    try:
        free, size = files.space(store.folder)
    except OSError as error:
        said = f"the disk can't be asked ({error.strerror})"
        return Diagnosis(_DISK, "room", said, Health.WRONG, "look at the disk of that folder")
    kind, budget = files.file_system(store.folder), store.budget
    told = {"free": free, "size": size, "budget": budget, "file_system": kind}
    said = (
        f"{format_size(free)} free of {format_size(size)}, at most {format_size(budget)} for the"
        f" cache{', ' + kind if kind else ''}"
    )
    if is_remote(kind):
        todo = "other machines may see it, and it is slow: LLM_MLX_CACHED_HOME can name another"
        return Diagnosis(_DISK, "room", said, Health.NOTE, todo, told)
    if not uses_disk():
        todo = f"nothing is kept on the disk: {DISK_SWITCH} is 0"
        return Diagnosis(_DISK, "room", said, Health.NOTE, todo, told)
    if not budget:
        todo = "nothing is kept on the disk: llm mlx-cached settings --disk auto"
        return Diagnosis(_DISK, "room", said, Health.NOTE, todo, told)
    if free < _LITTLE:
        todo = "the cache keeps little: make room, or llm mlx-cached clear --older-than 30d"
        return Diagnosis(_DISK, "room", said, Health.NOTE, todo, told)
    return Diagnosis(_DISK, "room", said, figures=told)


def index_of(store: DiskStore) -> Diagnosis:
    """The index and the files beside it; what they hold is read where it is not too much."""
    wrong = store.check(contents=False)
    held = store.stats()
    reads = held["bytes"] <= _MOST_READ
    if reads and not wrong:
        wrong = store.check()
    told = {
        "spans": held["spans"],
        "bytes": held["bytes"],
        "wrong": len(wrong),
        "contents": reads,
    }
    said = f"{counted(held['spans'], 'span')}, {format_size(held['bytes'])}"
    if store.off:
        todo = "llm mlx-cached check says why"
        return Diagnosis(_DISK, "index", "it can't be used", Health.WRONG, todo, told)
    if wrong:
        said = f"{said}; {len(wrong)} wrong, the first: {wrong[0]}"
        todo = "llm mlx-cached check --fix"
        return Diagnosis(_DISK, "index", said, Health.WRONG, todo, told)
    if not reads:
        todo = "llm mlx-cached check reads them all"
        return Diagnosis(
            _DISK, "index", f"{said}; their bytes were not read", todo=todo, figures=told
        )
    return Diagnosis(_DISK, "index", f"{said}, all verified", figures=told)
