"""A host that said nothing when it should have: remembered, so that it costs one long wait."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from ..config import write_private_file

if TYPE_CHECKING:
    from .frames import Channel
    from .place import Place


def name_of(place: Place) -> str:
    """What tells the host that has the socket just now from those before and after it, or ""."""
    try:
        found = place.socket.lstat()
    except OSError:
        return ""
    # A process number may be another's by now; a socket is made once. Its change time moves.
    return f"{found.st_ino} {found.st_mtime_ns}"


def remember(place: Place, channel: Channel) -> None:
    """Note that the host at the other end of a channel hangs; a disk that fails is no news."""
    with suppress(OSError):
        write_private_file(place.hung, channel.host)


def forget(place: Place) -> None:
    """Note that it answers."""
    with suppress(OSError):
        place.hung.unlink(missing_ok=True)


def is_hung(place: Place, host: str) -> bool:
    """Whether this host, by its `name_of`, was seen to hang."""
    with suppress(OSError, ValueError):
        return bool(host) and place.hung.read_text(encoding="ascii") == host
    return False
