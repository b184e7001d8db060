"""The speed at which the disk under the cache reads, measured with a file of our own."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..cache.sizes import format_size
from ..config import create_private
from .doctor_diagnosis import Diagnosis, Health

_BLOCK: Final = 1 << 20
_MOST: Final = 64  # blocks
_SECONDS: Final = 1.0  # of writing; what is written by then is read
_SLOW: Final = 100e6  # bytes a second
_F_NOCACHE: Final = 48  # macOS: reads and writes of a descriptor leave nothing in memory


def read_speed(folder: Path) -> Diagnosis:
    """Bytes a second, read from a new file in `folder`, which is removed."""
    path = folder / "reads"
    try:
        size = _write(path)
        seconds = _read(path)
    except OSError as error:
        said = f"a file can't be written and read there ({error.strerror})"
        return Diagnosis("disk", "reads", said, Health.WRONG, "make room, or look at that disk")
    finally:
        path.unlink(missing_ok=True)
    speed = size / max(seconds, 1e-9)
    said = f"{format_size(speed)} a second, of a file of {format_size(size)} that memory had not"
    told = {"bytes": size, "seconds": seconds}
    if speed >= _SLOW:
        return Diagnosis("disk", "reads", said, figures=told)
    todo = "what such a disk holds is often computed sooner; the cache does that by itself"
    return Diagnosis("disk", "reads", said, Health.NOTE, todo, told)


def _write(path: Path) -> int:
    """Fill a new file until it is large enough or the time is over; how many bytes it has."""
    block, until, size = os.urandom(_BLOCK), time.monotonic() + _SECONDS, 0
    with os.fdopen(create_private(path), "wb", buffering=0) as file:
        _keep_out_of_memory(file.fileno())
        while not size or (size < _MOST * _BLOCK and time.monotonic() < until):
            size += file.write(block) or 0
        os.fsync(file.fileno())
        _keep_out_of_memory(file.fileno())
    return size


def _read(path: Path) -> float:
    """Seconds to read a file to its end."""
    buffer = bytearray(_BLOCK)
    with path.open("rb", buffering=0) as file:
        _keep_out_of_memory(file.fileno())
        began = time.monotonic()
        while file.readinto(buffer):
            pass
        return time.monotonic() - began


def _keep_out_of_memory(descriptor: int) -> None:
    """Have the system forget what it holds of a file, where it can."""
    with suppress(OSError):
        if sys.platform == "darwin":
            fcntl.fcntl(descriptor, _F_NOCACHE, 1)
        elif hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
