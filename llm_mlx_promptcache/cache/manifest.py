"""A manifest of a model's files at one moment, by stamps that every change of them changes.

Names and stamps only; contents are digested by `identity.py`. A folder is untrusted: a pipe, a
device or a file without end in it is recognised before anything opens it.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

# Files from which weights, configs, tokenizers and templates are read.
_CONTENT = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "tokenizer.model.*",
    "merges.txt",
    "vocab.txt",
)
# Those that libraries read whole into memory: not weights, and not JSON that is no model's.
_READ_WHOLE = (
    *("*.jinja", "*.model", "*.tiktoken", "tokenizer.model.*", "merges.txt", "vocab.txt"),
    *("*config.json", "*.index.json", "tokenizer*.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab*.json", "chat_template*.json", "tekken.json", "encoder.json"),
)
_INSIDE = "additional_chat_templates"  # the one folder in a model's folder that is read
_MOST_FILES = 4096
# A change within one tick of a file system's clock does not show. Linux ticks every 1 to 10 ms;
# file systems without fractions of a second tick every second.
_TICK = 20_000_000
_SECOND = 1_000_000_000


class Stamp(NamedTuple):
    """A file's device, inode, size, mode, and the time of its last change, which nobody can set."""

    device: int
    inode: int
    size: int
    mode: int
    changed: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """The stamp of a stat result."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mode, status.st_ctime_ns)

    @property
    def plain(self) -> bool:
        """True if it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def endless(self) -> bool:
        """True if opening it may wait, or reading it never end: a pipe, a socket, a device."""
        return not (self.plain or stat.S_ISDIR(self.mode))


class ListedFile(NamedTuple):
    """A name in one of the folders: `own` is its stamp, a link's too, `read` that of its target.

    `read` is None for a link to nothing.
    """

    folder: int
    path: Path
    own: Stamp
    read: Stamp | None

    @property
    def read_whole(self) -> bool:
        """True if loading the model takes all of this file into memory at once."""
        return any(fnmatchcase(self.path.name, pattern) for pattern in _READ_WHOLE)


class FilesChanged(Exception):
    """A model's files have changed; the message names the first of them."""


class Manifest(NamedTuple):
    """The folders of a model and an adapter, and all files in them that a model is read from.

    `young` is a file that was still being written: a later change of it may not show.
    """

    folders: tuple[Path, ...]
    entries: tuple[ListedFile, ...]
    young: Path | None = None

    @classmethod
    def of(cls, folders: Iterable[Path]) -> Manifest:
        """The files as they are now; OSError if a folder can't be listed.

        Waits for the file system's clock, a tick at most, if a file has changed just now.
        """
        folders = tuple(folders)
        entries = tuple(_entries(folders))
        young, wait = _youngest(entries)
        if wait:
            time.sleep(wait)
            entries = tuple(_entries(folders))
            young, wait = _youngest(entries)
        return cls(folders, entries, young if wait else None)

    def plain(self) -> Iterator[ListedFile]:
        """The regular files, folder by folder, by name."""
        return (entry for entry in self.entries if entry.read is not None and entry.read.plain)

    def endless(self) -> Path | None:
        """A name that must not be opened."""
        found = (e.path for e in self.entries if e.read is not None and e.read.endless)
        return next(found, None)

    def check(self) -> None:
        """FilesChanged if anything has changed; OSError if that can't be told."""
        now = tuple(_entries(self.folders))
        before, after = set(self.entries), set(now)
        others = [entry for entry in (*now, *self.entries) if entry not in before & after]
        # A name that came or went shows in its folder too, and says more.
        others.sort(key=lambda entry: entry.path in self.folders)
        if others or self.young is not None:
            path = others[0].path if others else self.young
            raise FilesChanged(f"{path} changed")


def _youngest(entries: Iterable[ListedFile]) -> tuple[Path | None, float]:
    """The newest change, and the seconds until another change of it would show."""
    now = time.time_ns()
    youngest, most = None, 0
    for entry in entries:
        for stamp in (entry.own, entry.read or entry.own):
            tick = _TICK if stamp.changed % _SECOND else _SECOND + _TICK
            left = stamp.changed + tick - now
            # A time far ahead is another clock's: a change today has another one.
            if most < left <= tick:
                youngest, most = entry.path, left
    return youngest, most / 1e9


def _entries(folders: tuple[Path, ...]) -> Iterator[ListedFile]:
    """The names in the folders, and the folders themselves: their stamps show added names."""
    count = 0
    for number, folder in enumerate(folders):
        for path in _content(folder):
            count += 1
            if count > _MOST_FILES:
                raise OSError(f"{folder} holds more than {_MOST_FILES} files of a model")
            entry = _entry(number, path)
            if entry is not None:
                yield entry


def _content(folder: Path) -> Iterator[Path]:
    yield folder
    names = sorted(path.name for path in folder.iterdir())
    yield from (folder / n for n in names if any(fnmatchcase(n, p) for p in _CONTENT))
    inside = folder / _INSIDE
    if inside.is_dir():
        yield inside
        yield from (inside / n for n in sorted(p.name for p in inside.glob("*.jinja")))


def _entry(number: int, path: Path) -> ListedFile | None:
    try:
        own = Stamp.of(path.lstat())
    except FileNotFoundError:  # gone since it was listed, as the folder's stamp will say
        return None
    if not stat.S_ISLNK(own.mode):
        return ListedFile(number, path, own, own)
    try:
        return ListedFile(number, path, own, Stamp.of(path.stat()))
    except OSError:  # a link to nothing, or in a circle
        return ListedFile(number, path, own, None)
