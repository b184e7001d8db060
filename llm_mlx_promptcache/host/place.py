"""The place of this user's and home's host: one folder of ours, and the files in it."""

from __future__ import annotations

import os
import socket
import stat
import struct
import sys
import time
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

from ..config import cache_folder, data_folder, make_private_folder
from ..models.paths import real_path

# sun_path with the zero behind it: 104 bytes on macOS and the BSDs, 108 on Linux.
MAX_PATH: Final = 107 if sys.platform == "linux" else 103

_NAME: Final = "llm-mlx-promptcache"
_POLL: Final = 0.01  # seconds between tries
_SOL_LOCAL: Final = 0
_LOCAL_PEERCRED: Final = 1
_LOCAL_PEERPID: Final = 2
_XUCRED: Final = 76  # bytes: version, uid, number of groups, 16 groups
_UCRED: Final = struct.Struct("3i")  # pid, uid, gid


class HostUnavailable(RuntimeError):
    """No host can be had; the message says why, in one line in the user's words."""


class Place(NamedTuple):
    """The host's folder, its owner's alone, and the files in it."""

    folder: Path
    socket: Path
    start_lock: Path  # held by the starter of a host, until it answers
    life_lock: Path  # held by the host for its whole life
    hung: Path  # names a host that stayed silent when it should not have
    log: Path
    salt: Path  # of the digests in a hello


def host_place(served: str = "") -> Place:
    """The place of this home's host, its folder made and verified; HostUnavailable.

    With a name, that of the host of a model which runs over several machines.
    """
    place = place_in(_folder(served))
    try:
        make_private_folder(place.folder)
    except OSError as error:
        raise HostUnavailable(
            f"{place.folder} can't be made ({error.filename}: {error.strerror})"
        ) from error
    verify(place.folder)
    return place


def existing_place(served: str = "") -> Place | None:
    """The same if it exists, so that a host can; None if it does not. Makes nothing.

    HostUnavailable if others could put a host of theirs into it.
    """
    place = place_in(_folder(served))
    try:
        place.folder.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise HostUnavailable(
            f"{place.folder} can't be read ({error.filename}: {error.strerror})"
        ) from error
    verify(place.folder)
    return place


def place_in(folder: Path) -> Place:
    """The files of a place in `folder`; looks at nothing."""
    return Place(
        folder,
        folder / "socket",
        folder / "start.lock",
        folder / "life.lock",
        folder / "hung",
        folder / "log",
        folder / "salt",
    )


def verify(folder: Path) -> None:
    """Refuse a folder in which others could put a socket of theirs; HostUnavailable."""
    try:
        found, above = folder.lstat(), folder.parent.stat()
    except OSError as error:
        raise HostUnavailable(f"{folder} can't be read ({error.strerror})") from error
    if stat.S_ISLNK(found.st_mode):
        raise HostUnavailable(f"{folder} is a link; remove it")
    if not stat.S_ISDIR(found.st_mode):
        raise HostUnavailable(f"{folder} is not a folder; remove it")
    if found.st_uid != os.geteuid():
        raise HostUnavailable(f"{folder} belongs to user {found.st_uid}; remove it")
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise HostUnavailable(f"{folder} is open to others (mode {mode:o}); chmod 700 it")
    # In a folder like /tmp others make files, but can't rename or remove this one.
    if above.st_mode & 0o002 and not above.st_mode & stat.S_ISVTX:
        raise HostUnavailable(f"others may rename what is in {folder.parent}; chmod o-w it")


def connected(path: Path, until: float) -> socket.socket | None:
    """A socket connected to the one at `path`; None if nobody listens there.

    TimeoutError if its queue of connections stays full until `until`, by `time.monotonic`.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        while True:
            sock.settimeout(max(until - time.monotonic(), 0.0))
            try:
                sock.connect(os.fspath(path))
                return sock
            except BlockingIOError:  # Linux's answer to a full queue, at once
                if time.monotonic() >= until:
                    raise TimeoutError(f"{path} takes no connections") from None
                time.sleep(_POLL)
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise


def peer_uid(sock: socket.socket) -> int:
    """The user at the other end of a Unix socket; OSError where the system does not tell."""
    if hasattr(socket, "SO_PEERCRED"):
        found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        return int(_UCRED.unpack(found)[1])
    found = sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED)
    return int(struct.unpack_from("I", found, 4)[0])


def peer_pid(sock: socket.socket) -> int:
    """The process at the other end of a Unix socket (for a client: the listener), or 0."""
    with suppress(OSError):
        if hasattr(socket, "SO_PEERCRED"):
            found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            return int(_UCRED.unpack(found)[0])
        return int(sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID))
    return 0


def _folder(served: str) -> Path:
    """The cache's own folder if a socket fits in it, else a short one."""
    cache = real_path(cache_folder())
    name = f"served-{sha256(served.encode()).hexdigest()[:8]}" if served else "host"
    usual = cache / name
    if _fits(usual) and not _is_remote(usual):
        return usual
    both = os.fsencode(real_path(data_folder())) + b"\0" + os.fsencode(cache)
    if served:
        both += b"\0" + served.encode()
    home = sha256(both).hexdigest()[:8]
    for base in _short_bases():
        folder = base / f"{_NAME}-{os.geteuid()}-{home}"
        if _fits(folder):
            return folder
    raise HostUnavailable(f"{usual} is no place for a socket, and TMPDIR names none that is")


def _short_bases() -> list[Path]:
    """The folders to use for paths that are too long, or on another machine."""
    named = [os.environ.get("XDG_RUNTIME_DIR", ""), os.environ.get("TMPDIR", ""), "/tmp"]  # noqa: S108
    # Another user's, which `su` leaves in the environment, can't be written to.
    return [Path(name) for name in named if name.startswith("/") and os.access(name, os.W_OK)]


def _fits(folder: Path) -> bool:
    return len(os.fsencode(place_in(folder).socket)) <= MAX_PATH


def _is_remote(folder: Path) -> bool:
    """True if other machines may see a folder: a socket is this one's alone."""
    from ..cache.disk.files import Files, is_remote

    return is_remote(Files().file_system(folder.parent))
