"""What spans' files hold, asked for through here: it takes MLX, imported with the first question.

Who only looks at the index, as most commands do, is done before MLX would be there.
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
    from .span_file import FileSays, OpenSpan, UnpublishedSpan


def opened(path: Path, files: Files) -> OpenSpan:
    """A span's file to read; DamagedSpan, OSError or UnknownKind where it can't be had."""
    from .span_file import OpenSpan

    return OpenSpan(path, files)


def said_by(path: Path, files: Files, *, verified: bool) -> FileSays:
    """What a file says of its spans, all of it read if `verified`; errors as `opened`."""
    from . import span_file

    return span_file.said_by(path, files, verified=verified)


def unpublished(
    folder: Path, head: Head, tensors: Sequence[Tensor], files: Files
) -> UnpublishedSpan:
    """A new span's file, under a private name."""
    from .span_file import UnpublishedSpan

    return UnpublishedSpan(folder, head, tensors, files)


def source(file: OpenSpan, wanted: list[str]) -> PackSource | None:
    """A file to be packed, as far as these spans go; None unless they follow each other there."""
    from . import pack_file

    return pack_file.source_of(file, wanted)


def unpublished_pack(
    folder: Path, sources: Sequence[PackSource], few: Few, files: Files, *, coded: bool
) -> UnpublishedPack:
    """A new pack of these, under a private name, before anything is written to it."""
    from .pack_file import UnpublishedPack

    return UnpublishedPack(folder, sources, few, files, coded=coded)


def can_code(sources: Sequence[PackSource]) -> bool:
    """Whether there is anything to code in these files that is not coded already."""
    from . import pack_file

    return pack_file.can_code(sources)


def shares_of(size: int, lengths: Sequence[int]) -> list[int]:
    """The bytes of a pack of this size that count as each of its spans'."""
    from . import span_header

    return span_header.shares_of(size, lengths)


def can_pack(layout: str) -> bool:
    """Whether spans of layers that are described so can be packed."""
    from . import pack_file

    try:
        return pack_file.can_pack(layout_from_text(layout))
    except ValueError:  # of kinds that nobody brings any more
        return False


def layout_to_text(layout: Layout) -> str:
    """A layout as the index keeps it."""
    from ..layers import layout_text

    return layout_text.layout_to_text(layout)


def layout_from_text(text: str) -> Layout:
    """The layout that a text describes; ValueError for anything else."""
    from ..layers import layout_text

    return layout_text.layout_from_text(text)
