"""A span's file as bytes: opened with suspicion, read in bounded calls, digested on the way.

Its ends lie behind all else, with a digest of their own: both parts are read from their starts on,
in turns, and the second one only if it is wanted.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from enum import Enum, auto
from pathlib import Path
from typing import Any, Final

import xxhash

from ..span import DamagedEnds, DamagedSpan
from .descriptors import Descriptor
from .files import Files

DIGEST_BYTES: Final = 16
MOST_A_CALL: Final = 1 << 30  # bytes; macOS refuses calls over 2^31 - 1, Linux cuts them short
_MOST_BUFFERS: Final = 512  # of one call; systems take 1,024
_BLOCK: Final = 4 << 20
_AHEAD: Final = 1 << 20  # bytes; of more at once Linux reads only as much as a device takes at once
_ASKED: Final = 4  # bytes of a file by which it is guessed whether it is in memory
_WANTED: Final[int | None] = getattr(os, "POSIX_FADV_WILLNEED", None)


class Origin(Enum):
    """The origin of a file, which decides its rightful owner."""

    FOLDER = auto()  # a store's own: its owner's alone
    ELSEWHERE = auto()  # anybody's, given by the user


class _BytesPart:
    """A part of a file that is read from its start on; its digest lies at its end."""

    def __init__(self, at: int, end: int, digest: Any) -> None:
        self.at = at
        self.end = end
        self.digest = digest


class SpanBytes:
    """A span's file from its first byte to its digest, or its digests.

    DamagedSpan for anything but a whole file of ours. Failures of the system (descriptors, memory,
    a failing device) are an OSError and say nothing about the file.
    """

    def __init__(self, path: Path, files: Files, origin: Origin = Origin.FOLDER) -> None:
        self.name = path.name
        self._origin = origin
        self._file = Descriptor(path, files, _opened(path, files))
        self._position = 0  # of the descriptor
        self._last = b""
        try:
            self.size = self._checked_size()
        except BaseException:
            self.close()
            raise
        self._main = _BytesPart(0, self.size - DIGEST_BYTES, xxhash.xxh3_128())
        self._ends: _BytesPart | None = None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def pause(self) -> None:
        """Release the descriptor until the next read, which goes on from the same place."""
        self._file.pause()

    @property
    def _descriptor(self) -> int:
        return self._file.number

    def part(self, at: int) -> None:
        """From byte `at` on are ends: their digest is of what was digested so far, and of them."""
        self._ends = _BytesPart(at, self._main.end, self._main.digest.copy())
        self._main.end = at - DIGEST_BYTES

    def leave_ends(self) -> None:
        """The ends are neither read nor verified, from now on."""
        self._ends = None

    @property
    def wanted(self) -> int:
        """The bytes to read, from the file's start on."""
        return (self._ends or self._main).end + DIGEST_BYTES

    def read_ahead(self) -> None:
        """Tell the system what is wanted soon, unless it has it in memory."""
        if _WANTED is not None and hasattr(os, "posix_fadvise") and not self._is_at_hand():
            for start in range(0, self.wanted, _AHEAD):
                os.posix_fadvise(self._descriptor, start, _AHEAD, _WANTED)

    def _is_at_hand(self) -> bool:
        """True if the system seems to have the file in its page cache, so needs no advice.

        A few bytes are asked for, the last one first: more questions would spoil a cold read.
        """
        without_waiting: int | None = getattr(os, "RWF_NOWAIT", None)
        if without_waiting is None:
            return False
        try:
            for part in range(_ASKED, 0, -1):
                at = (self.wanted - 1) * part // _ASKED
                os.preadv(self._descriptor, [bytearray(1)], at, without_waiting)
        except OSError:  # not there, or on a file system that can't say
            return False
        return True

    def read_undigested(self, count: int) -> bytes:
        """The next bytes; the caller decides when they are digested (`digest`)."""
        block = bytearray(count)
        for call in _calls([memoryview(block)]):
            self._fill(self._main, call)
        return bytes(block)

    def digest(self, block: bytes) -> None:
        """Take these into the digest now."""
        self._main.digest.update(block)

    def digest_last(self, block: bytes) -> None:
        """Take these into the digest behind all that is read."""
        self._last = block

    def read(self, count: int) -> bytes:
        """The next bytes, exactly so many."""
        block = bytearray(count)
        self.read_into([memoryview(block)])
        return bytes(block)

    def read_into(self, buffers: Sequence[memoryview], *, ends: bool = False) -> None:
        """Fill these with the next bytes, or with the next of the ends."""
        part = self._ends if ends else self._main
        assert part is not None
        for call in _calls(buffers):
            self._fill(part, call)
            for buffer in call:
                part.digest.update(buffer)

    def verify(self) -> None:
        """Check after all was read: DamagedSpan unless it is as it was written.

        DamagedEnds if that is true of all but the ends.
        """
        self._main.digest.update(self._last)
        for part in self._parts:
            found = bytearray(DIGEST_BYTES)
            self._fill(part, [memoryview(found)])
            if part.digest.digest() != found or (
                part.at == self.size and os.read(self._descriptor, 1)
            ):
                if part is self._ends:
                    raise DamagedEnds(
                        f"{self.name}: its states and windows do not match their digest"
                    )
                raise DamagedSpan(f"{self.name}: its digest does not match its content")

    def verify_rest(self) -> None:
        """Verify without using the rest, which is read in blocks."""
        block = memoryview(bytearray(min(_BLOCK, self.size)))
        for part in self._parts:
            while (left := part.end - part.at) > 0:
                self.read_into([block[: min(left, _BLOCK)]], ends=part is self._ends)
        self.verify()

    @property
    def _parts(self) -> list[_BytesPart]:
        return [self._main] if self._ends is None else [self._main, self._ends]

    def _fill(self, part: _BytesPart, buffers: list[memoryview]) -> None:
        """Fill buffers with the next bytes of a part, however few a call returns."""
        if self._position != part.at:
            self._position = os.lseek(self._descriptor, part.at, os.SEEK_SET)
        self._read(buffers)
        part.at = self._position

    def _read(self, buffers: list[memoryview]) -> None:
        buffers = list(buffers)
        at = 0
        while at < len(buffers):
            if not buffers[at].nbytes:
                at += 1
                continue
            read = os.readv(self._descriptor, buffers[at:] if at else buffers)
            if not read:
                raise DamagedSpan(f"{self.name} shrank while it was read")
            self._position += read
            while at < len(buffers) and read >= buffers[at].nbytes:
                read -= buffers[at].nbytes
                at += 1
            if read:
                buffers[at] = buffers[at][read:]

    def _checked_size(self) -> int:
        status = os.fstat(self._descriptor)
        ours = self._origin is Origin.FOLDER
        if not stat.S_ISREG(status.st_mode) or (ours and status.st_uid != os.geteuid()):
            raise DamagedSpan(f"{self.name} is not a regular file of this user")
        if ours and status.st_mode & 0o077:
            raise DamagedSpan(f"{self.name} can be read or written by other users")
        if status.st_size <= 8 + DIGEST_BYTES:
            raise DamagedSpan(f"{self.name} has {status.st_size} bytes")
        return status.st_size


def _opened(path: Path, files: Files) -> int:
    try:
        return files.open(path)
    except FileNotFoundError:
        raise
    except OSError:
        # A link or a socket can't be opened, and is no file of ours; other errors are the system's.
        if stat.S_IFMT(path.lstat().st_mode) in (stat.S_IFLNK, stat.S_IFSOCK):
            raise DamagedSpan(f"{path.name} is not a regular file of this user") from None
        raise


def _calls(buffers: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """The buffers of each call: so many, and so many bytes."""
    call: list[memoryview] = []
    held = 0
    for buffer in buffers:
        flat = buffer if buffer.ndim == 1 and buffer.itemsize == 1 else buffer.cast("B")
        for start in range(0, flat.nbytes, MOST_A_CALL):
            part = flat[start : start + MOST_A_CALL]
            if call and (held + part.nbytes > MOST_A_CALL or len(call) == _MOST_BUFFERS):
                yield call
                call, held = [], 0
            call.append(part)
            held += part.nbytes
    if call:
        yield call
