"""Regular files, opened without waiting and read to a limit; imports no MLX.

What others can write, they can replace: a pipe or a device without end is refused, not read.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO, Final

# What systems answer who opens a socket, or a device that is not there.
_NO_FILE: Final = {errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP}


def open_plain(path: Path) -> IO[bytes]:
    """A regular file, to read; ValueError for anything else, OSError if it can't be opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise ValueError(f"{path.name} is no regular file") from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(f"{path.name} is no regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_plain(path: Path, most: int) -> bytes:
    """The content of a regular file of at most so many bytes; ValueError for anything else."""
    with open_plain(path) as file:
        content = file.read(most + 1)
        if len(content) > most:
            size = os.fstat(file.fileno()).st_size
            raise ValueError(f"{path.name} has {size} bytes, more than {most}")
    return content
