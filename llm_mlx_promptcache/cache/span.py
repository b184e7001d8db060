"""A span between memory and a store: what is found along a path, and what is to be written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import xxhash

if TYPE_CHECKING:
    from .layers.layout import Layout
    from .layers.pieces import Dtype, Piece
    from .trie import Tokens


class DamagedSpan(ValueError):
    """A stored span that is not what was written: taken as a miss, and deleted."""


class StoredSpan(NamedTuple):
    """A span on a path: the path follows its tokens from `start` to `end`.

    One without tokens is a checkpoint: it holds only what it takes to resume there.
    `resumes`: all that a path needs to resume at the span's last token is stored. `parent` is
    the span that it hangs on, "" at a path's start. Its bytes are in a file of its own, or with
    others in a `pack`.
    """

    file_id: str
    start: int
    end: int
    resumes: bool = True
    parent: str = ""
    pack: str = ""


class StoredPath(NamedTuple):
    """What is stored along a path: spans without gaps, and checkpoints inside or between them."""

    spans: list[StoredSpan]
    checkpoints: list[StoredSpan]

    @property
    def end(self) -> int:
        """Up to which token the path is stored."""
        return self.spans[-1].end if self.spans else 0


NOTHING = StoredPath([], [])


class Query(NamedTuple):
    """What is looked up: the beginning of a path, in a namespace of these layers."""

    namespace: str
    layout: Layout
    ids: Tokens[int]


class Head(NamedTuple):
    """Where a stored span stands on its path, and its tokens: none of them in a checkpoint.

    `label` is what people call the model, "" where nobody said.
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
    """Where one array lies in a stored span's data: its bytes are [begin, end)."""

    dtype: Dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class Tensor(NamedTuple):
    """One array as bytes of the host: no MLX is needed to write it, so any thread may."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    raw: memoryview


class Draft(NamedTuple):
    """A span to be stored: the whole path to its end, and its content.

    `pieces` are the arrays that the tensors share their memory with, for who needs them before
    they are stored; none of a checkpoint.
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
    """A path's hash, by which it is known where no file has it; the tokens are not in it."""
    digest = xxhash.xxh3_128(str(namespace).encode())
    digest.update(memoryview(ids).cast("B") if len(ids) else b"")
    return digest.digest()
