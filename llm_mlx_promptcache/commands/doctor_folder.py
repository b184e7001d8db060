"""`doctor`'s own folder on the disk of the user's cache, gone whatever ends the command."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..config import APP, cache_folder

_PREFIX: Final = f"{APP}-doctor-"
_TRIES: Final = 10  # at removing it: a file may come behind the last look
_LEFT: Final = 86400.0  # seconds after which one is nobody's: its process was killed


class NoFolder(Exception):
    """The reason for which there is no folder to measure in."""


class OwnFolder:
    """A folder beside the cache where that may be, else where temporary ones are.

    Who may be ended by a signal calls `remove` once that is held: no `with` is entered or left
    without a moment in which a signal is lost on it.
    """

    def __init__(self) -> None:
        self._path: Path | None = None

    def make(self) -> Path:
        """Make it, and remove what killed processes left there; NoFolder where it can't be."""
        try:
            beside = cache_folder().parent
            place = beside if os.access(beside, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
            _remove_left(place)
            self._path = place / f"{_PREFIX}{secrets.token_hex(8)}"
            self._path.mkdir(0o700)
        except OSError as error:
            raise NoFolder(error.strerror or str(error)) from error
        return self._path

    def remove(self) -> None:
        """Remove it, if it was made."""
        if self._path is not None:
            _remove(self._path)


def _remove_left(place: Path) -> None:
    with suppress(OSError):
        for folder in place.glob(f"{_PREFIX}{'[0-9a-f]' * 16}"):
            found = folder.lstat()
            if found.st_uid == os.geteuid() and time.time() - found.st_mtime > _LEFT:
                _remove(folder)


def _remove(folder: Path) -> None:
    for _ in range(_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
