"""ShownSpan: a span as commands show it, and as a host reports those that only its memory has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ..cache.disk.listing import ListedSpan

FIRST_TOKENS = 16  # of a span are reported, for its first words


class ShownSpan(NamedTuple):
    """A span of the disk, with `in_memory` of its tokens; or one of memory alone.

    `id` is whole: a file's, or, if no file has it, a digest of its path. `parent` is "" at a
    path's start; `first_tokens` show its first words.
    """

    id: str
    parent: str
    namespace: str
    model: str
    tier: str
    start: int
    end: int
    bytes: int
    hits: int
    used_at: int
    pinned: bool
    resumes: bool
    first_tokens: Sequence[int]
    in_memory: int
    on_disk: bool

    @classmethod
    def stored(cls, span: ListedSpan, in_memory: int) -> ShownSpan:
        """A span of the disk, with this number of its tokens in memory too."""
        return cls(
            id=span.file_id,
            parent=span.parent,
            namespace=span.namespace,
            model=span.model,
            tier=span.tier,
            start=span.start,
            end=span.end,
            bytes=span.bytes,
            hits=span.hits,
            used_at=span.used_at,
            pinned=span.pinned,
            resumes=span.resumes,
            first_tokens=span.tokens[:FIRST_TOKENS],
            in_memory=in_memory,
            on_disk=True,
        )
