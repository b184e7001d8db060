"""The results of a batch: a file that a later run continues, or stdout; a JSON line each."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import stat
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Protocol

import click

from ..cache.disk.files import to_disk
from ..config import create_private
from .batch_lines import BatchLine

_BEGINNING: Final = b'{"id": '  # of every line of ours
_MOST_RESULT: Final = 64 << 20  # bytes of a line


class ResultOrder(Enum):
    """The order of results."""

    INPUT = "as the prompts do"
    CAME = "as they came"


class Results(Protocol):
    """A place for results."""

    @property
    def done(self) -> AbstractSet[int | str]:
        """The ids of prompts that already have an answer."""

    def add(self, line: BatchLine, result: Mapping[str, Any]) -> None:
        """Keep the result of one prompt."""

    def close(self) -> None:
        """End, early or not: write what was kept back too, and put all in order."""


class ShownResults:
    """Results on stdout; in the input's order they wait for those before them."""

    done: AbstractSet[int | str] = frozenset()

    def __init__(self, lines: Sequence[BatchLine], order: ResultOrder) -> None:
        self._order = order
        self._left = [line.id for line in reversed(lines)]  # the next one stands last
        self._waiting: dict[int | str, str] = {}

    def add(self, line: BatchLine, result: Mapping[str, Any]) -> None:
        """Show a result, or keep it until those before it are there."""
        text = _written(line, result)
        if self._order is ResultOrder.CAME:
            click.echo(text)
            return
        self._waiting[line.id] = text
        while self._left and self._left[-1] in self._waiting:
            click.echo(self._waiting.pop(self._left.pop()))

    def close(self) -> None:
        """Show the results that still wait, since those before them will not come."""
        for id in reversed(self._left):
            if (text := self._waiting.pop(id, None)) is not None:
                click.echo(text)


class _ResultPlace(NamedTuple):
    """The place of a result in the file: its first byte, and its bytes."""

    start: int
    size: int


class ResultsFile:
    """Results in a file, each written as soon as it comes; put in order at the end.

    An existing file holds results of an earlier run: those are not asked again, except for errors,
    and a half-written last line is cut off. ValueError if it is anything else.
    """

    def __init__(self, path: Path, lines: Sequence[BatchLine], order: ResultOrder) -> None:
        self._path = path.resolve()
        self._lines = lines
        self._order = order
        self._digests = {line.id: line.digest for line in lines}
        self._places: dict[int | str, _ResultPlace] = {}
        self._end = 0
        self.done: set[int | str] = set()  # ids with an answer
        try:
            self._descriptor = _opened(self._path)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            self._claim()
            with os.fdopen(os.dup(self._descriptor), "rb") as file:
                self._read(file)
        except BaseException:
            os.close(self._descriptor)
            raise

    def add(self, line: BatchLine, result: Mapping[str, Any]) -> None:
        """Append a result; it stays whatever happens to this process."""
        data = f"{_written(line, result)}\n".encode()
        self._write(data)
        self._places[line.id] = _ResultPlace(self._end - len(data), len(data))

    def close(self) -> None:
        """Put the results in order, each once; those of ids that the input lacks come first."""
        places = dict(sorted(self._places.items(), key=lambda item: item[1].start))
        if self._order is ResultOrder.INPUT:
            asked = {line.id: places[line.id] for line in self._lines if line.id in places}
            places = {id: at for id, at in places.items() if id not in asked} | asked
        try:
            if not _is_whole(places.values(), self._end):
                self._rewrite(places.values())
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            os.close(self._descriptor)

    def _unwritable(self, error: OSError) -> ValueError:
        return ValueError(f"{self._path} can't be written: {error.strerror}")

    def _claim(self) -> None:
        """Keep other batches from writing the same file; where it has no locks, trust the user."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise ValueError(f"another batch is writing {self._path}; wait for it") from None

    def _read(self, file: IO[bytes]) -> None:
        """Find the results that are there; a half-written last line is cut off."""
        number = 0
        while data := file.readline(_MOST_RESULT + 1):
            number += 1
            found = _result(data)
            half = not data.endswith(b"\n") and len(data) <= _MOST_RESULT
            if half and found is None and _may_be_cut(data):
                os.ftruncate(self._descriptor, self._end)
                return
            self._take(number, found, len(data) + half)
            self._end += len(data)
            if half:  # it lacks nothing but its end
                self._write(b"\n")
                return

    def _take(self, number: int, found: Mapping[str, Any] | None, size: int) -> None:
        """Note an existing result; ValueError if a line is none, or answers another prompt."""
        where = f"{self._path}, line {number}"
        if found is None:
            raise ValueError(f"{where}: it is not a batch's result; give another -o FILE")
        id, digest = found["id"], found["digest"]
        if self._digests.get(id, digest) != digest:
            raise ValueError(
                f"{where}: it answers another prompt, or the same with other options or another"
                " model; give another -o FILE, or ask as before"
            )
        self._places[id] = _ResultPlace(self._end, size)
        (self.done.discard if "error" in found else self.done.add)(id)

    def _write(self, data: bytes) -> None:
        """Append to the file, whole or not at all."""
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._descriptor, data[written:], self._end + written)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._end)
            raise self._unwritable(error) from error
        self._end += len(data)

    def _rewrite(self, places: Iterable[_ResultPlace]) -> None:
        """Replace the file by these lines alone, in this order; whole or not at all."""
        temporary = self._path.with_name(f".{self._path.name}.{secrets.token_hex(8)}")
        descriptor = create_private(temporary)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, stat.S_IMODE(os.fstat(self._descriptor).st_mode))
                for place in places:
                    file.write(os.pread(self._descriptor, place.size, place.start))
                file.flush()
                to_disk(descriptor)
            temporary.replace(self._path)
        finally:
            temporary.unlink(missing_ok=True)


def _opened(path: Path) -> int:
    """A descriptor to read and write a plain file; a new one is its owner's only."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a plain file; without -o results go to stdout")
    return descriptor


def _written(line: BatchLine, result: Mapping[str, Any]) -> str:
    return json.dumps({"id": line.id, **result, "digest": line.digest}, ensure_ascii=False)


def _may_be_cut(data: bytes) -> bool:
    """True if bytes can be the beginning of a line of ours, and are no whole object of others."""
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return data.startswith(_BEGINNING) or _BEGINNING.startswith(data)
    return False


def _result(data: bytes) -> Mapping[str, Any] | None:
    """A line of ours as an object; None if it is none."""
    try:
        found = json.loads(data) if data.startswith(_BEGINNING) else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("digest"), str):
        return None
    return found if type(found["id"]) in (int, str) else None


def _is_whole(places: Iterable[_ResultPlace], end: int) -> bool:
    """True if each result follows the one before it, and nothing else is there."""
    at = 0
    for place in places:
        if place.start != at:
            return False
        at += place.size
    return at == end
