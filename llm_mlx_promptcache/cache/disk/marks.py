"""Marks that show other programs that a folder holds a cache, so that backups skip it.

CACHEDIR.TAG (https://bford.info/cachedir/), which tar, borg, restic and others know, and on macOS
the attribute that Time Machine heeds and `tmutil addexclusion` sets.
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

_TAG: Final = "CACHEDIR.TAG"
_SIGNATURE: Final = b"Signature: 8a477f597d28d172789f06886806bc55"
_TEXT: Final = (
    _SIGNATURE
    + b"""
# This file is a cache directory tag created by llm-mlx-promptcache.
# For information about cache directory tags, see https://bford.info/cachedir/
"""
)
_ATTRIBUTE: Final = b"com.apple.metadata:com_apple_backup_excludeItem"
_EXCLUDED_BY: Final = "com.apple.backupd"
_NO_LINKS: Final = getattr(os, "O_NOFOLLOW", 0)


class CacheMarks(NamedTuple):
    """The marks that a folder bears: the tag, and Time Machine's; None where there is none such."""

    tag: bool
    excluded: bool | None


def marks_of(folder: Path) -> CacheMarks:
    """The marks of a folder; what can't be read is not there."""
    tag, excluded = False, None
    with suppress(OSError):
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | _NO_LINKS
        with os.fdopen(os.open(folder / _TAG, flags), "rb", buffering=0) as file:
            tag = file.read(len(_SIGNATURE)) == _SIGNATURE
    if sys.platform == "darwin":
        excluded = False
        with suppress(OSError, AttributeError):
            excluded = _is_excluded_on_macos(folder)
    return CacheMarks(tag, excluded)


def mark_as_cache(folder: Path) -> None:
    """Mark a folder that exists; if that is not possible it stays as it is."""
    with suppress(OSError):
        _tag(folder / _TAG)
    if sys.platform == "darwin":
        with suppress(OSError, AttributeError):
            _exclude_on_macos(folder)


def _tag(path: Path) -> None:
    """Write the tag if there is none, or one only begun; anything else there stays."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | _NO_LINKS
    with os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0) as file:
        found = os.fstat(file.fileno())
        if stat.S_ISREG(found.st_mode) and not found.st_size:
            file.write(_TEXT)


def _exclude_on_macos(folder: Path) -> None:
    import plistlib

    # Python has os.setxattr on Linux alone. Position and options are 0.
    value = plistlib.dumps(_EXCLUDED_BY, fmt=plistlib.FMT_BINARY)
    size = ctypes.c_size_t(len(value))
    path = os.fsencode(folder)
    ctypes.CDLL(None).setxattr(path, _ATTRIBUTE, value, size, ctypes.c_uint32(0), ctypes.c_int(0))


def _is_excluded_on_macos(folder: Path) -> bool:
    call = ctypes.CDLL(None).getxattr
    call.restype = ctypes.c_ssize_t
    # Without a buffer it tells the size; -1 where there is no such attribute.
    size = call(
        os.fsencode(folder),
        _ATTRIBUTE,
        None,
        ctypes.c_size_t(0),
        ctypes.c_uint32(0),
        ctypes.c_int(0),
    )
    return int(size) > 0
