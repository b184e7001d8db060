"""A model folder of our own making: complete or absent, made by one process at a time."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from filelock import BaseFileLock, FileLock, Timeout

from ..config import make_private_folder
from .progress import Report

_PARTIAL = ".partial-"
_LOOK: Final = 0.5  # seconds between looks for another process that makes a folder


@contextmanager
def being_made(folder: Path, report: Report, waiting: str) -> Iterator[Path | None]:
    """Yield a folder to work in; `folder.name` inside it becomes `folder` if all went well.

    None if `folder` appeared meanwhile. Other processes that make one are waited for, reported as
    `waiting`, and leftovers of dead ones are removed. OSError if it can't be stored.
    """
    make_private_folder(folder.parent)
    with _lock(folder.parent, report, waiting) as alone:
        if alone:
            for leftover in folder.parent.glob(f"{_PARTIAL}*"):
                shutil.rmtree(leftover, ignore_errors=True)
        if folder.is_dir():
            yield None
            return
        # Beside its final place, so that the rename stays on one filesystem.
        work = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=folder.parent))
        try:
            yield work
            _place(work / folder.name, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _place(made: Path, folder: Path) -> None:
    try:
        made.rename(folder)
    except OSError:
        # Without locks another process may have been faster; its folder is as good.
        if not folder.is_dir():
            raise


@contextmanager
def _lock(models: Path, report: Report, waiting: str) -> Iterator[bool]:
    """Hold the folder's lock, which ends with the process; False if locks don't work there."""
    lock = FileLock(models / ".lock", mode=0o600)
    try:
        yield _locked(lock, report, waiting)
    finally:
        lock.release()


def _locked(lock: BaseFileLock, report: Report, waiting: str) -> bool:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        while not lock.is_locked:
            report(waiting, 0, 0)  # may end the wait
            with suppress(Timeout):
                lock.acquire(timeout=_LOOK)
    except (NotImplementedError, OSError):
        return False
    return True
