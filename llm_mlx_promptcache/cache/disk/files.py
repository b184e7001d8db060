"""The disk tier's calls to the operating system, in one place, so that tests can make it fail."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from .claims import claim

if TYPE_CHECKING:
    from collections.abc import Iterator

_OWNER_ONLY = 0o600
_MOUNTS = Path("/proc/self/mountinfo")
# SQLite's log wants memory that all of its users share, and locks that hold: neither is promised
# by these. `fuse` is what programs serve, most of them from afar.
_REMOTE: Final = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afpfs", "webdav", "ceph", "9p"}
_REMOTE_PARTS: Final = ("fuse.", "macfuse", "osxfuse")
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)
# Of file systems without hard links (FAT, some of FUSE's), and of systems that forbid them.
_NO_HARD_LINKS: Final = {
    errno.EPERM,
    errno.EACCES,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EMLINK,
}


class Files:
    """The calls that can fail: make, publish, remove, list, and look at the clock and the space."""

    def create(self, path: Path) -> IO[bytes]:
        """Create a file of its owner's alone, to write, claimed by whoever has it open (claims.py).

        An error if anything is there already.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | _NO_LINKS
        file = os.fdopen(os.open(path, flags, _OWNER_ONLY), "wb", buffering=0)
        try:
            claim(file.fileno())
        except BaseException:
            file.close()
            path.unlink(missing_ok=True)
            raise
        return file

    def open(self, path: Path) -> int:
        """A descriptor to read; never through a link, and never waiting for a pipe's writer."""
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | _NO_LINKS)

    def replace(self, source: Path, target: Path) -> None:
        """Publish a file under its final name."""
        source.replace(target)

    def name_new(self, source: Path, target: Path) -> None:
        """Give a whole file a name that nobody has; FileExistsError if somebody has it by now.

        `source` stays or goes. Without hard links the name is taken by an empty file first, which
        is left there by who is killed between these two calls.
        """
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
        else:
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | _NO_LINKS
        os.close(os.open(target, flags, _OWNER_ONLY))
        try:
            source.replace(target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    def sync(self, file: IO[bytes]) -> None:
        """Have all that was written to a file reach the disk."""
        to_disk(file.fileno())

    def sync_folder(self, folder: Path) -> None:
        """Have the names in a folder reach the disk."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            to_disk(descriptor)
        finally:
            os.close(descriptor)

    def unlink(self, path: Path) -> bool:
        """Remove a file; False if it was gone already."""
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        return True

    def names(self, folder: Path) -> list[str]:
        """The names in a folder; none if there is no folder."""
        with suppress(FileNotFoundError):
            return [path.name for path in folder.iterdir()]
        return []

    def now(self) -> float:
        """Seconds by the wall clock; it may jump, so only ages are measured by it."""
        return time.time()

    def clock(self) -> float:
        """Seconds that only go forward, from any beginning: pauses are measured by them."""
        return time.monotonic()

    def space(self, folder: Path) -> tuple[int, int]:
        """Bytes that are free on the folder's disk for this user, and its size."""
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    def file_system(self, folder: Path) -> str:
        """The name of the folder's file system, such as "ext4"; empty if unknown."""
        with suppress(OSError, ValueError, IndexError, AttributeError):
            if sys.platform == "darwin":
                return _file_system_on_macos(folder)
            return file_system_in(_MOUNTS.read_text(errors="replace"), folder.stat().st_dev)
        return ""


def to_disk(descriptor: int) -> None:
    """Have what was written reach the disk itself, past the drive's own memory on macOS too.

    There fsync promises only that the drive has it (`man 2 fsync`), and F_FULLFSYNC the rest.
    """
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with suppress(OSError):  # not every file system has it
            fcntl.fcntl(descriptor, full)
            return
    os.fsync(descriptor)


def make_own_folder(folder: Path, *, through_link: bool = False) -> None:
    """Make a folder for its owner alone, or narrow one; OSError if it is somebody else's.

    Missing parent folders are made for the owner alone too; others stay as they are.
    """
    _make_missing(folder)
    status = folder.stat() if through_link else folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(f"{folder} is no folder; remove it")
    if status.st_uid != os.geteuid():
        raise PermissionError(f"{folder} belongs to user {status.st_uid}; use a folder of your own")
    if status.st_mode & 0o077:
        folder.chmod(0o700)


def _make_missing(folder: Path) -> None:
    # Not `parents=True`, which gives the folders on the way the umask's mode and not ours.
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
        if folder == missing[-1]:
            break
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a folder's lock against other processes; yields False if another holds it already.

    The lock is on the folder itself, since a lock file could be removed under its holder.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:  # held, or a file system without locks
            yield False
        else:
            try:
                yield True
            finally:  # a fork has the descriptor too, and would hold the lock on
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def is_gone(path: Path) -> bool:
    """True if nothing is at a path. A path that the system can't look at just now is not gone."""
    try:
        path.lstat()
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return False


def same_file(path: Path, known: tuple[int, int]) -> bool:
    """True if a path still is the file with this device and inode."""
    try:
        found = path.stat()
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == known


def is_remote(file_system: str) -> bool:
    """True if a file system of this name is on another machine, or may be."""
    return file_system in _REMOTE or file_system.startswith(_REMOTE_PARTS)


def file_system_in(mounts: str, device: int) -> str:
    """The name of a device's file system in Linux's table of mounts; ValueError for another's."""
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split()[2] == number:
            return source.split()[0]
    raise ValueError(f"device {number} is not in the table of mounts")


def _file_system_on_macos(folder: Path) -> str:
    # struct statfs with 64-bit inodes: f_fstypename is 16 bytes from byte 72 on.
    found = ctypes.create_string_buffer(4096)
    libc = ctypes.CDLL(None, use_errno=True)
    call = getattr(libc, "statfs$INODE64", None) or libc.statfs
    if call(os.fsencode(folder), found):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
    return found.raw[72:88].split(b"\0")[0].decode("ascii", "replace")
