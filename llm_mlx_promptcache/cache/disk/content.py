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
    from .files import Files
    from .span_file import OpenSpan, UnpublishedSpan


def opened(path: Path, files: Files) -> OpenSpan:
    """A span's file to read; DamagedSpan, OSError or UnknownKind where it can't be had."""
    from .span_file import OpenSpan

    return OpenSpan(path, files)


def verified_head(path: Path, files: Files) -> tuple[Head, int]:
    """The head of a file, all of which was read and verified, and its bytes; errors as `opened`."""
    from . import span_file

    return span_file.verified_head(path, files)


def unpublished(
    folder: Path, head: Head, tensors: Sequence[Tensor], files: Files
) -> UnpublishedSpan:
    """A new span's file, under a private name."""
    from .span_file import UnpublishedSpan

    return UnpublishedSpan(folder, head, tensors, files)


def layout_to_text(layout: Layout) -> str:
    """A layout as the index keeps it."""
    from ..layers import layout_text

    return layout_text.layout_to_text(layout)


def layout_from_text(text: str) -> Layout:
    """The layout that a text describes; ValueError for anything else."""
    from ..layers import layout_text

    return layout_text.layout_from_text(text)
