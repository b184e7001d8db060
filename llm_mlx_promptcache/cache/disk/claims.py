"""Claims: a file's writer holds a lock on it, so that no sweep takes it for a leftover.

A lock belongs to its writer however old the file is and whatever the clocks say: a stopped process
still holds it, a killed one does not, and containers that share a folder see each other's locks
even if they don't see each other's processes.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Final

_NO_LINKS: Final = getattr(os, "O_NOFOLLOW", 0)
_NO_LOCKS: Final = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_NO_FILES: Final = {errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EOPNOTSUPP}  # links, sockets


class Claim(Enum):
    """The state of a file's claim."""

    HELD = "a process is writing it, or may be: nobody can look just now"
    NONE = "nobody is"
    UNKNOWN = "its file system has no locks, or it is no file"


def claim(descriptor: int) -> None:
    """Claim a new file until its descriptor is closed; FileNotFoundError if it was swept first.

    Shared, since a look for a claim takes the exclusive lock for a moment.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise FileNotFoundError(errno.ENOENT, "swept before it was claimed") from None
    if not os.fstat(descriptor).st_nlink:
        raise FileNotFoundError(errno.ENOENT, "swept before it was claimed")


@contextmanager
def looked_at(path: Path) -> Iterator[Claim]:
    """Yield the claim on a file; if there is none, nobody can claim it meanwhile."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | _NO_LINKS)
    except OSError as error:
        # A link or a socket is nobody's. A file the system can't open just now may be claimed.
        yield Claim.UNKNOWN if error.errno in _NO_FILES else Claim.HELD
        return
    try:
        state = _state(descriptor)
        try:
            yield state
        finally:
            if state is Claim.NONE:  # a fork has the descriptor too, and would hold the lock on
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _state(descriptor: int) -> Claim:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return Claim.HELD
    except OSError:
        return Claim.UNKNOWN
    return Claim.NONE
