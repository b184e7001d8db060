"""Pins: spans that must not be evicted, in a small file beside them that outlives the index.

A span's file id tells nothing of a conversation. The file of pins is as untrusted as any other:
owner-only, written whole and renamed, of bounded size, with a digest; any other counts as no file.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import xxhash

from ..span import DamagedSpan
from .file_ids import is_file_id, new_file_id
from .folder import StoreFolder
from .span_bytes import SpanBytes

if TYPE_CHECKING:
    from .index import Index

_log = logging.getLogger(__name__)

_FORMAT: Final = "llm-mlx-promptcache/pins/1"
_MOST_BYTES: Final = 4 << 20


class Pins:
    """The file of pins in a store's folder; changed only under the index's lock."""

    def __init__(self, folder: StoreFolder) -> None:
        self.path = folder.path / "pins.json"
        self._files = folder.files

    def read(self) -> set[str] | None:
        """The file ids of pinned spans, some evicted maybe; None if there is no such list.

        OSError if the system can't read it just now, which says nothing about its content.
        """
        try:
            found = SpanBytes(self.path, self._files)
        except (FileNotFoundError, DamagedSpan):
            return None
        try:
            if found.size > _MOST_BYTES:
                return None
            return _parsed(json.loads(found.read(found.size)))
        except (ValueError, RecursionError):  # a DamagedSpan among them
            return None
        finally:
            found.close()

    def into(self, index: Index) -> None:
        """Pin the listed spans in the index; OSError as `read`."""
        for file_id in self.read() or ():
            index.pin(file_id, pinned=True)

    def restored(self, index: Index) -> bool:
        """Pin as `into`, for an index that may have been made without; False with a warning."""
        try:
            self.into(index)
        except OSError as error:
            self._failed(error)
            return False
        return True

    def keep(self, index: Index) -> None:
        """List the index's pinned spans; a warning if that can't be done."""
        try:
            self.write(index.pinned())
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        _log.warning("what is pinned in %s may be forgotten: %s", self.path.parent, error)

    def write(self, file_ids: Iterable[str]) -> None:
        """Replace the list; OSError if that can't be done."""
        pinned = sorted(file_ids)
        text = json.dumps({"format": _FORMAT, "digest": _digest(pinned), "pinned": pinned})
        temporary = self.path.with_name(f".{self.path.name}-{os.getpid()}-{new_file_id()}")
        try:
            with self._files.create(temporary) as file:
                rest = memoryview(text.encode())
                while rest.nbytes:
                    rest = rest[file.write(rest) :]
                self._files.replace(temporary, self.path)
        except BaseException:
            with suppress(OSError):
                self._files.unlink(temporary)
            raise

    def clear(self) -> None:
        """Forget all pins."""
        with suppress(OSError):
            self._files.unlink(self.path)


def _parsed(found: Any) -> set[str] | None:
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        return None
    pinned = found.get("pinned")
    if not isinstance(pinned, list) or not all(is_file_id(file_id) for file_id in pinned):
        return None
    return set(pinned) if found.get("digest") == _digest(pinned) else None


def _digest(pinned: list[str]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(pinned).encode())
