"""Hosts that hang: remembered, so that each costs only one long wait."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from ..cache.plain_files import read_plain
from ..config import write_private_file
from .place import HostUnavailable

if TYPE_CHECKING:
    from .place import Place

_START: Final = "start"
_PAUSE: Final = 60.0  # seconds without another try, when a start took too long


def name_of(place: Place) -> str:
    """A name for the host that has the socket now, unlike those before and after it, or ""."""
    try:
        found = place.socket.lstat()
    except OSError:
        return ""
    # A process number may be another's by now; a socket is made once. Its change time moves.
    return f"{found.st_ino} {found.st_mtime_ns}"


def name_with(host: str, model: str) -> str:
    """A name for a host's engine of one model: it may hang while the host itself answers."""
    return host and f"{host} {sha256(os.fsencode(model)).hexdigest()[:16]}"


def remember(place: Place, host: str) -> None:
    """Note that a host, or its engine of one model, hangs; a disk that fails is ignored."""
    with suppress(OSError):
        write_private_file(place.hung, host)


def forget(place: Place) -> None:
    """Note that the host answers again."""
    with suppress(OSError):
        place.hung.unlink(missing_ok=True)


def is_hung(place: Place, host: str) -> bool:
    """True if this host, by its `name_of` or `name_with`, was seen to hang."""
    with suppress(OSError, ValueError):
        return bool(host) and read_plain(place.hung, len(host)) == host.encode("ascii")
    return False


def remember_start(place: Place) -> None:
    """Note that a host could not be started in time."""
    remember(place, _START)


def check_starts(place: Place) -> None:
    """Refuse another start right after a slow one, whose wait was long enough; HostUnavailable."""
    with suppress(OSError):
        ago = time.time() - place.hung.stat().st_mtime
        if is_hung(place, _START) and 0 <= ago < _PAUSE:
            raise HostUnavailable(f"a host took too long to start {ago:.0f} seconds ago")
