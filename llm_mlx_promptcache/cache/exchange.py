"""Export of a prefix from a cache as one file, and its import into another with the same model.

The caller lists the settings that must be the same before its rows are used (`about`): they are in
the file, and import refuses a file with others, naming the differences.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .disk.files import Files
from .disk.prefix_file import OtherPrefix, PrefixFile, write_prefix
from .disk.span_file import host_tensors
from .disk.unpublished import ExportTarget
from .insertion import Rows
from .layers import layout as layouts
from .span import Head
from .trie import as_tokens
from .worth import TIERS

if TYPE_CHECKING:
    from .prompt_cache import PromptCache
    from .trie import Tokens

__all__ = ["OtherPrefix", "Prefix", "PrefixFile", "export_prefix", "import_prefix", "open_prefix"]


class Prefix(NamedTuple):
    """A prefix to export: a path in a namespace, and the settings needed to use it elsewhere.

    The namespace itself is not exported. `label` is the user's name for the model, for listings
    there; "" if it means nothing elsewhere.
    """

    namespace: str
    tokens: Tokens[int]
    about: Mapping[str, str]
    tier: str = TIERS[-1]
    label: str = ""


class Exported(NamedTuple):
    """The tokens in an exported file, and its bytes."""

    tokens: int
    bytes: int


def export_prefix(cache: PromptCache, prefix: Prefix, file: Path) -> Exported:
    """Write the stored part of a path to a file, up to the last token at which it can be resumed.

    The file is its owner's alone, is written under a private name, and gets its own once it is
    whole. ValueError if nothing of the path is stored, FileExistsError if something is there, even
    if it came meanwhile, OSError if it can't be written.
    """
    if os.path.lexists(file):
        raise _is_taken(file)
    if not file.parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "there is no such folder", os.fspath(file.parent))
    # One token more: a lookup never takes all of what is asked (law 2).
    lease = cache.fetch_ahead(prefix.namespace, [*prefix.tokens, 0])
    if lease.layers is None:
        raise ValueError(f"nothing of these {len(prefix.tokens)} tokens is stored")
    count, layout = lease.cached, layouts.layout_of(lease.layers)
    (tensors,) = host_tensors(layouts.cut(layout, lease.layers, count, 0, count))
    head = Head(
        namespace="",
        parent="",
        start=0,
        tier=prefix.tier,
        layout=layout,
        tokens=as_tokens(prefix.tokens[:count]),
        resumes=True,
        label=prefix.label,
    )
    del lease
    try:
        size = write_prefix(ExportTarget(file, prefix.about), head, tensors, Files())
    except FileExistsError:
        raise _is_taken(file) from None
    return Exported(count, size)


def open_prefix(file: Path) -> PrefixFile:
    """Open an exported file and check its header; the caller closes it.

    DamagedSpan if it is none or visibly not whole, OSError if it can't be read.
    """
    return PrefixFile(file, Files())


def import_prefix(
    cache: PromptCache, file: PrefixFile, namespace: str, about: Mapping[str, str]
) -> int:
    """Take in a file's prefix, and write it to the store; returns the number of tokens kept.

    Nothing is kept before all of it is read and its digest is right: DamagedSpan if it is wrong,
    OtherPrefix if the file is about something else.
    """
    file.check(about)
    head = file.head
    layers = file.layers()
    kept = cache.insert(namespace, head.tokens, layers, _tier(head.tier), rows=Rows.RETURN)
    cache.flush()
    return kept


def _is_taken(file: Path) -> FileExistsError:
    name = os.fspath(file)
    shown = name if name.isprintable() else ascii(name)
    return FileExistsError(f"{shown} is there already; give another name, or remove it first")


def _tier(said: str) -> str:
    """A tier of ours: an unknown one counts as the least persistent."""
    return said if said in TIERS else TIERS[0]
