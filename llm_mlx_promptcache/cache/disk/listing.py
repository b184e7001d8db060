"""The spans on disk as a tree to look at: each span, its path, and where prompts leave it."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..span import path_digest
from ..trie import Tokens, common_prefix
from .index_rows import ListedRow

ID_LENGTH = 8  # characters of a span's id that users see; the fewest that may name it


@dataclass(frozen=True)
class ListedSpan:
    """A stored span: it leaves its parent's path at token `start`; without tokens, a checkpoint.

    `model` is the user's name for the model, "" if none was given; `used_at` is a Unix time.
    """

    file_id: str
    parent: str
    namespace: str
    model: str
    start: int
    tokens: Tokens[int] = field(repr=False)
    tier: str
    bytes: int
    hits: int
    used_at: int
    pinned: bool
    resumes: bool

    @property
    def id(self) -> str:
        """The id shown to users."""
        return self.file_id[:ID_LENGTH]

    @property
    def end(self) -> int:
        """The token behind its last one."""
        return self.start + len(self.tokens)


class Parting(NamedTuple):
    """The place where a stored path and a prompt part, and the path's tokens there."""

    at: int
    span: ListedSpan
    tokens: Tokens[int]


class Listing:
    """All spans of a store, by file id and by parent."""

    def __init__(self, spans: Sequence[ListedSpan]) -> None:
        self.spans = spans
        self._by_file_id = {span.file_id: span for span in spans}
        self._below: dict[str, list[ListedSpan]] = {}
        for span in spans:
            self._below.setdefault(span.parent, []).append(span)

    @classmethod
    def of(cls, rows: Iterable[ListedRow], tiers: Sequence[str]) -> Listing:
        """The listing of an index's rows."""
        return cls([_span(row, tiers) for row in rows])

    def below(self, file_id: str = "") -> list[ListedSpan]:
        """The children of a span, or the starts of paths; in the order of the tokens."""
        return sorted(self._below.get(file_id, []), key=lambda span: (span.start, span.file_id))

    def named(self, name: str) -> list[ListedSpan]:
        """The spans that an id, or the beginning of one, can mean.

        If it is no file's, it may be the id that a path had before it was stored.
        """
        if len(name) < ID_LENGTH:
            return []
        found = [span for span in self.spans if span.file_id.startswith(name)]
        return found or [
            span
            for span in self.spans
            if span.tokens and path_id(span.namespace, self.path(span)).startswith(name)
        ]

    def path(self, span: ListedSpan) -> Tokens[int]:
        """The tokens from the path's start to the span's end."""
        chain = [span]
        while chain[-1].parent:
            chain.append(self._by_file_id[chain[-1].parent])
        ids: array[int] = array("I")
        for passed in reversed(chain):
            del ids[passed.start :]  # where a path leaves a span, the rest of that is another's
            ids.extend(passed.tokens)
        return ids

    def along(self, namespace: str, ids: Tokens[int]) -> list[ListedSpan]:
        """The spans that hold the beginning of `ids`, in order."""
        found: list[ListedSpan] = []
        at, file_id = 0, ""
        while at < len(ids):
            following = [
                span
                for span in self._below.get(file_id, [])
                if (span.namespace, span.start) == (namespace, at)
                and span.tokens[:1] == ids[at : at + 1]
            ]
            if not following:
                break
            found.append(following[0])
            file_id = following[0].file_id
            at += common_prefix(following[0].tokens, ids, 0, at)
        return found

    def nearest(self, namespace: str, ids: Tokens[int]) -> Parting | None:
        """The stored path, other than that of `ids` itself, that shares most of it."""
        chain = self.along(namespace, ids)
        partings = [Parting(0, span, span.tokens) for span in self._below.get("", [])]
        for passed in chain:
            same = common_prefix(passed.tokens, ids, 0, passed.start)
            left = passed.start + same
            partings.append(Parting(left, passed, passed.tokens[same:]))
            # Spans further on have left the prompt with this span.
            below = [span for span in self._below.get(passed.file_id, []) if span.start <= left]
            partings.extend(Parting(span.start, span, span.tokens) for span in below)
        # A path that only goes on where the prompt ends leaves it nowhere.
        apart = [
            parting
            for parting in partings
            if parting.span.namespace == namespace
            and parting.at < len(ids)
            and parting.tokens
            and parting.tokens[0] != ids[parting.at]
        ]
        return max(apart, key=lambda parting: parting.at, default=None)


def path_id(namespace: str, ids: Tokens[int]) -> str:
    """The id of the end of a path as long as it has no file: a digest of the path."""
    return path_digest(namespace, ids).hex()


def stored_length(chain: Sequence[ListedSpan], ids: Tokens[int]) -> int:
    """The number of `ids` that the spans along them hold."""
    if not chain:
        return 0
    last = chain[-1]
    return last.start + common_prefix(last.tokens, ids, 0, last.start)


def _span(listed: ListedRow, tiers: Sequence[str]) -> ListedSpan:
    row = listed.row
    return ListedSpan(
        file_id=row.file_id,
        parent=row.parent,
        namespace=row.namespace,
        model=listed.label,
        start=row.start,
        tokens=row.tokens,
        tier=tiers[row.tier] if row.tier < len(tiers) else tiers[0],
        bytes=row.bytes,
        hits=listed.hits,
        used_at=listed.used_at,
        pinned=listed.pinned,
        resumes=row.resumes,
    )
