"""A prefix of prompts as one file for other users: a span's or a pack's, with its model and origin.

It is untrusted: its name, owner and mode mean nothing, and everything in it is checked before use.
That its rows were computed of its tokens rests on the writer's word: only computing them anew could
tell (docs/privacy.md).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..layers import layout as layouts
from ..layers.layout import Layout, PathPart
from ..layers.pieces import View
from ..span import DamagedSpan, Head, Tensor
from .descriptors import Few
from .file_ids import is_file_id, new_file_id
from .held_span import HeldSpan
from .pack_file import PackSource, UnpublishedPack, can_code, can_pack, holds_every_row
from .restore import fits
from .span_bytes import Origin
from .span_file import OpenSpan, UnpublishedSpan, empty
from .span_header import (
    CODED_FORMAT,
    FORMAT,
    PACK_FORMAT,
    Member,
    about_from,
    layout_from_metadata,
)
from .unpublished import ExportTarget

if TYPE_CHECKING:
    from typing import Self

    from ..layers.kinds import Layer
    from .files import Files


class OtherPrefix(ValueError):
    """A whole file of a prefix for another model or setting; the message names the differences."""


class PrefixFile(OpenSpan):
    """An exported file while it is read: a path from its start, which can be resumed at its end.

    Errors are an OpenSpan's. `about` lists the settings that must be the same before its rows are
    used.
    """

    def __init__(self, path: Path, files: Files) -> None:
        self._metadata: dict[str, Any] = {}
        super().__init__(path.resolve(), files, Origin.ELSEWHERE)
        try:
            self.about = about_from(self._metadata)
            self._check_path()
        except DamagedSpan:
            self.close()
            raise
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            self.close()
            raise DamagedSpan(f"{self.name}: {type(error).__name__}: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self, about: Mapping[str, str]) -> None:
        """OtherPrefix unless the file is about exactly this."""
        names = [*self.about, *(name for name in about if name not in self.about)]
        # A file's own names are a stranger's text, for a terminal.
        apart = [
            f"{_plain(name)} {_said(self.about.get(name))} there and {_said(about.get(name))} here"
            for name in names
            if self.about.get(name) != about.get(name)
        ]
        if apart:
            raise OtherPrefix(f"{self.name} can't be used here: {'; '.join(apart)}")

    def layers(self) -> list[Layer]:
        """Layers that hold all of it, read and verified."""
        count, layout = len(self.head.tokens), self.head.layout
        begin, end = self.extent(0, len(layout))
        try:
            (data,) = empty([end - begin])
            self.read_into([memoryview(cast("Any", data))[: end - begin]])
            self.verify()
            part = PathPart(0, count, count, self.pieces(0, len(layout), data))
            return layouts.join(layout, [part], count, 0)
        except (DamagedSpan, OSError):
            raise
        except Exception as error:  # MLX's, for want of memory; or of a plugin's kind of layer
            raise DamagedSpan(f"{self.name} can't be made layers of: {error!r:.200}") from None

    def _layout(self, metadata: dict[str, Any]) -> Layout:
        self._metadata = metadata
        file_id = metadata["file_id"]
        if not is_file_id(file_id):
            raise ValueError("its id is none")
        self._file_id, self._is_pack = file_id, metadata["format"] != FORMAT
        return layout_from_metadata(metadata, file_id, (FORMAT, PACK_FORMAT, CODED_FORMAT))

    def _check_path(self) -> None:
        head, outline = self.head, self.outline()
        count = len(head.tokens)
        if head.parent or head.start or not count:
            raise DamagedSpan(f"{self.name} is not a path from its start")
        whole = all(
            fits(kind, piece, count)
            and kind.resumable([View(0, count, count, piece)], count) == count
            for kind, piece in zip(head.layout, outline, strict=True)
        )
        if not whole:
            raise DamagedSpan(f"{self.name} does not hold all that its {count} tokens take")


def write_prefix(target: ExportTarget, head: Head, tensors: Sequence[Tensor], files: Files) -> int:
    """Write a path from its start, coded if that makes it smaller; returns the file's bytes.

    It gets its name once it is whole and synced, if nobody has that by then: FileExistsError.
    OSError if it can't be written.
    """
    try:
        return _written(target, head, tensors, files)
    except OSError as error:  # of the private name, or of none
        raise OSError(error.errno, error.strerror, os.fspath(target.path)) from None


def _written(target: ExportTarget, head: Head, tensors: Sequence[Tensor], files: Files) -> int:
    name, folder = new_file_id(), target.path.parent
    member = Member(name, len(head.tokens), head.tier, resumes=True)
    source = PackSource(HeldSpan(name, head, tensors), [member], 0)
    if can_pack(head.layout) and holds_every_row(source.file) and can_code([source]):
        with UnpublishedPack(folder, [source], Few(), files, coded=True, target=target) as pack:
            for _ in pack.written():
                pass
            pack.publish_new()
            return pack.size
    with UnpublishedSpan(folder, head, tensors, files, target) as span:
        span.sync()
        span.publish_new()
        return span.size


def _plain(name: str) -> str:
    return (name if name.isprintable() else repr(name))[:80]


def _said(value: str | None) -> str:
    return "is not said" if value is None else f"is {value!r:.80}"
