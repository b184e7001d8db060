"""A span between memory and a store: as found along a path, and as it is to be written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import xxhash

if TYPE_CHECKING:
    from .layers.layout import Layout
    from .layers.pieces import Dtype, Piece
    from .trie import Tokens


class DamagedSpan(ValueError):
    """A stored span that is not as it was written: treated as a miss, and deleted."""


class DamagedEnds(DamagedSpan):
    """A span whose states and windows are not as they were written; its tokens and rows are."""


class StoredSpan(NamedTuple):
    """A span on a path: the path follows its tokens from `start` to `end`.

    One without tokens is a checkpoint: it holds only the layers' state there. `resumes`: everything
    a path needs to resume at the span's last token is stored. `parent` is the span that it hangs
    on, "" at a path's start. Its bytes are in a file of its own, or with others in a `pack`.
    """

    file_id: str
    start: int
    end: int
    resumes: bool = True
    parent: str = ""
    pack: str = ""


class StoredPath(NamedTuple):
    """The stored part of a path: spans without gaps, and checkpoints inside or between them."""

    spans: list[StoredSpan]
    checkpoints: list[StoredSpan]

    @property
    def end(self) -> int:
        """The token up to which the path is stored."""
        return self.spans[-1].end if self.spans else 0


NOTHING = StoredPath([], [])


class Query(NamedTuple):
    """A query: the beginning of a path, in a namespace of these layers."""

    namespace: str
    layout: Layout
    ids: Tokens[int]


class Head(NamedTuple):
    """A stored span's place on its path, and its tokens: none of them in a checkpoint.

    `label` is the user's name for the model, "" if none was given.
    """

    namespace: str
    parent: str
    start: int
    tier: str
    layout: Layout
    tokens: Tokens[int]
    resumes: bool
    label: str = ""


class StoredTensor(NamedTuple):
    """The place of one array in a stored span's data: its bytes are [begin, end)."""

    dtype: Dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class Tensor(NamedTuple):
    """One array as bytes of the host: writing it needs no MLX, so any thread may."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    raw: memoryview


class NewSpan(NamedTuple):
    """A span to be stored: the whole path to its end, and its content.

    `pieces` are the arrays that the tensors share their memory with, for use before they are
    stored; none of a checkpoint.
    """

    namespace: str
    layout: Layout
    path: Tokens[int]
    start: int
    tier: str
    tensors: list[Tensor]
    resumes: bool
    pieces: Sequence[Piece | None] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the content."""
        return sum(tensor.raw.nbytes for tensor in self.tensors)


def path_digest(namespace: object, ids: Tokens[int]) -> bytes:
    """A path's hash, its id before it has a file; the tokens can't be read from it.

    No two paths are hashed from the same bytes: the namespace's length comes first, and each token
    has four bytes. It is never stored, so no file's version depends on it.
    """
    name = repr(namespace).encode()  # not `str`: a cache of mlx-lm's may have 1 and "1" as models
    digest = xxhash.xxh3_128(len(name).to_bytes(8, "little") + name)
    digest.update(memoryview(ids).cast("B") if len(ids) else b"")
    return digest.digest()
