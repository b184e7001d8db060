"""A prefix leaves a cache as one file, and comes into another: for who has the same model.

What must be the same before anybody uses its rows, the caller says (`about`): it stands in the
file, and import refuses a file that is of anything else, with what differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .disk.files import Files
from .disk.prefix_file import OtherPrefix, PrefixFile, write_prefix
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
    """What is exported: a path in a namespace, and what must be the same where it is used.

    The namespace itself does not leave. `label` is what people call the model, for who looks for
    it there; "" where that says nothing elsewhere.
    """

    namespace: str
    tokens: Tokens[int]
    about: Mapping[str, str]
    tier: str = TIERS[-1]
    label: str = ""


class Exported(NamedTuple):
    """How many tokens a file holds, and its bytes."""

    tokens: int
    bytes: int


def export_prefix(cache: PromptCache, prefix: Prefix, file: Path) -> Exported:
    """Write what is kept of a path, up to the last token at which it can be resumed, to a file.

    The file is its owner's alone, is written beside under a private name, and gets its own once it
    is whole. ValueError where nothing of the path is kept, FileExistsError where something is
    there, OSError where it can't be written.
    """
    if file.exists() or file.is_symlink():
        raise FileExistsError(f"{file} is there already; give another name, or remove it first")
    # One token more: a lookup never takes all of what is asked (law 2).
    lease = cache.fetch_ahead(prefix.namespace, [*prefix.tokens, 0])
    if lease.layers is None:
        raise ValueError(f"nothing of these {len(prefix.tokens)} tokens is stored")
    count, layout = lease.cached, layouts.layout_of(lease.layers)
    pieces = layouts.cut(layout, lease.layers, count, 0, count)
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
    size = write_prefix(ExportTarget(file, prefix.about), head, pieces, Files())
    return Exported(count, size)


def open_prefix(file: Path) -> PrefixFile:
    """A file that somebody exported, its header checked; to be closed.

    DamagedSpan where it is none or not whole as far as that shows, OSError where it can't be read.
    """
    return PrefixFile(file, Files())


def import_prefix(
    cache: PromptCache, file: PrefixFile, namespace: str, about: Mapping[str, str]
) -> int:
    """Take in what a file holds, and write it to the store; returns how many tokens are kept.

    Nothing is kept before all of it is read and its digest is right: DamagedSpan where that is
    not so, OtherPrefix where it is of something else.
    """
    file.check(about)
    head = file.head
    layers = file.layers()
    kept = cache.insert(namespace, head.tokens, layers, _tier(head.tier), rows=Rows.RETURN)
    cache.flush()
    return kept


def _tier(said: str) -> str:
    """A tier of ours: one that is not is taken for the least persistent."""
    return said if said in TIERS else TIERS[0]
