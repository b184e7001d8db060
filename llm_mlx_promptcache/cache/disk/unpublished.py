"""A new file under a private name, until it is published; otherwise nothing of it is left."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import xxhash

from .file_ids import TEMPORARY, new_file_id
from .files import same_file
from .span_bytes import MOST_A_CALL

if TYPE_CHECKING:
    from typing import Self

    from .files import Files


class NotPublished(Exception):
    """A file could not get its name: not the index's fault, which loses the row again."""

    def __init__(self, why: OSError) -> None:
        super().__init__(str(why))
        self.why = why


class ExportTarget(NamedTuple):
    """A path of the user's that a file is written for, and what it says it is of."""

    path: Path
    about: Mapping[str, str]

    def named(self, _folder: Path, _file_id: str) -> Path:
        """That path, whatever the file's id."""
        return self.path


class UnpublishedFile:
    """A file that is being written, digested on the way.

    Its writer claims it as long as this is open (`Files.create`), so nobody sweeps it. Its name
    tells nothing of the content, and exists only once the whole file does.
    """

    def __init__(self, folder: Path, named: Callable[[Path, str], Path], files: Files) -> None:
        self.file_id = new_file_id()
        self.size = 0
        self._files = files
        self._temporary = folder / f"{TEMPORARY}{os.getpid()}-{self.file_id}"
        self._final = named(folder, self.file_id)
        self._published = False
        self._process = os.getpid()
        self._open = ExitStack()
        self._digest = xxhash.xxh3_128()
        try:
            self._file: Any = self._open.enter_context(files.create(self._temporary))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, block: bytes | memoryview) -> None:
        """Write the next bytes."""
        self._digest.update(block)
        self._write(block)

    def reserve(self, count: int) -> None:
        """Leave so many bytes to be written later (`put_first`)."""
        self._write(bytes(count))

    def put_first(self, block: bytes) -> None:
        """Write the beginning of the file, which was left for it; nothing else follows."""
        self._file.seek(0)
        self._write(block)
        self.size -= len(block)

    def take(self, block: bytes) -> None:
        """Take bytes into the digest that are written elsewhere."""
        self._digest.update(block)

    def digest_so_far(self) -> Any:
        """The digest of what was put so far, to go on from."""
        return self._digest.copy()

    def go_on_from(self, digest: Any) -> None:
        """Digest what follows as if it came behind what this is of."""
        self._digest = digest

    def put_digest(self) -> None:
        """Write the digest of all before it, or behind where it goes on from."""
        self._write(self._digest.digest())

    def sync(self) -> None:
        """Have all that was written so far reach the disk."""
        self._files.sync(self._file)

    def publish(self) -> None:
        """Give the file its name; FileNotFoundError if somebody cleared it meanwhile."""
        self._files.replace(self._temporary, self._final)
        self._published = True

    def publish_durably(self) -> None:
        """Give it its name so that it survives a power cut; NotPublished if that fails."""
        try:
            self.publish()
            self._files.sync_folder(self._final.parent)
        except OSError as error:
            raise NotPublished(error) from None

    def publish_new(self) -> None:
        """Give it its name durably, unless somebody has taken that: FileExistsError.

        After any OSError it does not have it. The private name stays until this is closed.
        """
        found = self._temporary.stat()
        self._files.name_new(self._temporary, self._final)
        try:
            self._files.sync_folder(self._final.parent)
        except OSError:
            if same_file(self._final, (found.st_dev, found.st_ino)):
                with suppress(OSError):
                    self._files.unlink(self._final)
            raise

    def withdraw(self) -> None:
        """Take the name back, since the file could not be entered elsewhere."""
        if self._published and self._process == os.getpid():
            with suppress(OSError):
                self._files.unlink(self._final)

    def close(self) -> None:
        """Close the file, and remove its private name."""
        try:
            if not self._published and self._process == os.getpid():  # a fork has it open as well
                with suppress(OSError):
                    self._files.unlink(self._temporary)
        finally:
            self._open.close()

    def _write(self, block: bytes | memoryview) -> None:
        rest = memoryview(block)
        self.size += rest.nbytes
        while rest.nbytes:  # an unbuffered write may take less, and tells how much
            rest = rest[self._file.write(rest[:MOST_A_CALL]) :]
