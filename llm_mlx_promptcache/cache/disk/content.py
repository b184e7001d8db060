"""Access to the content of spans' files: it takes MLX, imported on the first call.

Callers that only read the index, like most commands, finish before MLX would be loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..layers.layout import Layout
    from ..span import Head, Tensor
    from .descriptors import Few
    from .files import Files
    from .pack_file import PackSource, UnpublishedPack
    from .rows_alone import UnpublishedRows
    from .span_file import FileSays, OpenSpan, UnpublishedSpan


def opened(path: Path, files: Files) -> OpenSpan:
    """Open a span's file to read; DamagedSpan, OSError or UnknownKind if it is not available."""
    from .span_file import OpenSpan

    return OpenSpan(path, files)


def said_by(path: Path, files: Files, *, verified: bool) -> FileSays:
    """A file's own record of its spans, all of it read if `verified`; errors as `opened`."""
    from . import span_file

    return span_file.said_by(path, files, verified=verified)


def unpublished(
    folder: Path, head: Head, tensors: Sequence[Tensor], files: Files
) -> UnpublishedSpan:
    """A new span's file, under a private name."""
    from .span_file import UnpublishedSpan

    return UnpublishedSpan(folder, head, tensors, files)


def rows_alone(folder: Path, file: OpenSpan, files: Files) -> UnpublishedRows:
    """A copy of a file without its states and windows, under a private name."""
    from .rows_alone import UnpublishedRows

    return UnpublishedRows(folder, file, files)


def source(file: OpenSpan, wanted: list[str]) -> PackSource | None:
    """A file to be packed, reduced to these spans; None unless they follow each other there."""
    from . import pack_file

    return pack_file.source_of(file, wanted)


def unpublished_pack(
    folder: Path, sources: Sequence[PackSource], few: Few, files: Files, *, coded: bool
) -> UnpublishedPack:
    """A new pack of these, under a private name, before anything is written to it."""
    from .pack_file import UnpublishedPack

    return UnpublishedPack(folder, sources, few, files, coded=coded)


def can_code(sources: Sequence[PackSource]) -> bool:
    """True if these files have uncoded arrays that can be coded."""
    from . import pack_file

    return pack_file.can_code(sources)


def holds_every_row(file: OpenSpan) -> bool:
    """True unless a window has left out some of the file's tokens: then it can't be packed."""
    from . import pack_file

    return pack_file.holds_every_row(file)


def shares_of(size: int, lengths: Sequence[int]) -> list[int]:
    """Each span's share of the bytes of a pack of this size."""
    from . import span_header

    return span_header.shares_of(size, lengths)


def can_pack(layout: str) -> bool:
    """True if spans with layers of this description may be packed."""
    from . import pack_file

    try:
        return pack_file.can_pack(layout_from_text(layout))
    except ValueError:  # of kinds that nobody registers any more
        return False


def layout_to_text(layout: Layout) -> str:
    """A layout as the index keeps it."""
    from ..layers import layout_text

    return layout_text.layout_to_text(layout)


def layout_from_text(text: str) -> Layout:
    """The layout that a text describes; ValueError for anything else."""
    from ..layers import layout_text

    return layout_text.layout_from_text(text)
