"""What PromptCache asks of a store, and NullStore, which keeps nothing."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from .span import NOTHING

if TYPE_CHECKING:
    from .layers.layout import Layout
    from .layers.pieces import MxArray, Piece
    from .span import DamagedSpan, Draft, Head, StoredPath, StoredSpan, StoredTensor
    from .trie import Tokens


class SpanReader(Protocol):
    """A stored span while it is read: the head at once, layers in their order, then the digest.

    What is read is not to be believed before `verify` has passed. DamagedSpan where it is not what
    was written, OSError where the system can't read it just now.
    """

    broken: DamagedSpan | None  # what was seen to be wrong with it

    @property
    def name(self) -> str:
        """What an error calls it."""

    @property
    def size(self) -> int:
        """Bytes to read, all in all."""

    @property
    def head(self) -> Head:
        """Where the span stands on its path, and its tokens."""

    def outline(self) -> list[Piece | None]:
        """Pieces as far as one can plan with them: not read, they have nothing but a shape."""

    def entries(self, layer: int) -> list[StoredTensor | None]:
        """What is stored of each array of a layer."""

    def extent(self, first: int, last: int) -> tuple[int, int]:
        """Where the bytes of the layers [first, last) lie in the data."""

    def read_ahead(self) -> None:
        """Have all of it got ready, where somebody can."""

    def read_into(self, buffers: Sequence[memoryview]) -> None:
        """Read on into these, which hold what comes next in the data."""

    def pieces(self, first: int, last: int, data: MxArray) -> list[Piece | None]:
        """The pieces of layers [first, last) out of the bytes of their extent."""

    def verify(self) -> None:
        """After all was read: DamagedSpan unless it is what was written."""

    def pause(self) -> None:
        """Let go of what the system gives few of, until the next read."""

    def close(self) -> None:
        """Let go of it."""


class Store(Protocol):
    """Where spans outlive the process."""

    def layout(self, namespace: str) -> Layout | None:
        """The kinds of layer that a namespace's spans hold, where it has any."""

    def lookup(self, namespace: str, tokens: Tokens[int]) -> StoredPath:
        """What is stored along `tokens`, from the path's start."""

    def said_behind(self, namespace: str, tokens: Tokens[int], most: int) -> Tokens[int]:
        """At most `most` tokens that stood behind these last, where that is known at once."""

    @property
    def unseen(self) -> bool:
        """Whether the last lookup could not see what is stored, and did not wait until it could."""

    def open(
        self,
        namespace: str,
        span: StoredSpan,
        tokens: Tokens[int],
        more: Sequence[StoredSpan] = (),
    ) -> SpanReader | None:
        """A span to be read, checked as far as its head goes; None where it can't be had.

        `more` of the path is in the same file.
        """

    def damaged(self, span: StoredSpan, error: DamagedSpan) -> None:
        """A span was seen not to be what was written: it is deleted, with all that hangs on it."""

    def unreadable(self, error: Exception) -> None:
        """Something could not be read, by no fault of its own: it stays, and is told once."""

    def used(self, spans: Sequence[StoredSpan]) -> None:
        """A fetch went on from these."""

    def save(self, draft: Draft) -> bool:
        """Store a span whose path is stored up to its start; any thread may call this."""

    @property
    def pause(self) -> float:
        """Seconds for which `save` tries nothing, since others are in the way; mostly 0."""

    def try_again(self) -> None:
        """End such a pause."""

    def tend(self) -> bool:
        """Do what lookups left to do, and keep to the budget; False if there is more of it."""

    def pin(self, namespace: str, tokens: Tokens[int], *, pinned: bool) -> bool:
        """Keep what is stored along a path from being evicted, or no longer; whether any is."""

    def label(self, namespace: str, name: str, identity: str = "") -> None:
        """What people call the model of a namespace, and which model that is."""

    def stats(self) -> dict[str, int]:
        """Spans, tokens and bytes held, bytes written by this process, and the budget."""

    def clear(self, *, model: str | None = None, days: float | None = None) -> int:
        """Remove what is stored, of one model or unused for days if said; returns bytes freed."""


class NullStore:
    """Stores nothing: the off switch."""

    def layout(self, namespace: str) -> Layout | None:
        """Nothing is known of any namespace."""
        return None

    def lookup(self, namespace: str, tokens: Tokens[int]) -> StoredPath:
        """Nothing is found."""
        return NOTHING

    def said_behind(self, namespace: str, tokens: Tokens[int], most: int) -> Tokens[int]:
        """Nothing was said."""
        return array("I")

    @property
    def unseen(self) -> bool:
        """There is nothing to see."""
        return False

    def open(
        self,
        namespace: str,
        span: StoredSpan,
        tokens: Tokens[int],
        more: Sequence[StoredSpan] = (),
    ) -> SpanReader | None:
        """Nothing is there."""
        return None

    def damaged(self, span: StoredSpan, error: DamagedSpan) -> None:
        """Nothing can be."""

    def unreadable(self, error: Exception) -> None:
        """Nothing is read."""

    def used(self, spans: Sequence[StoredSpan]) -> None:
        """Nothing is counted."""

    def save(self, draft: Draft) -> bool:
        """Nothing is written."""
        return False

    @property
    def pause(self) -> float:
        """Nothing is in the way."""
        return 0.0

    def try_again(self) -> None:
        """Nothing is tried."""

    def tend(self) -> bool:
        """Nothing is left to do."""
        return True

    def pin(self, namespace: str, tokens: Tokens[int], *, pinned: bool) -> bool:
        """Nothing is kept."""
        return False

    def label(self, namespace: str, name: str, identity: str = "") -> None:
        """Nothing is named."""

    def stats(self) -> dict[str, int]:
        """All zero."""
        return dict.fromkeys(("spans", "tokens", "bytes", "written", "budget"), 0)

    def clear(self, *, model: str | None = None, days: float | None = None) -> int:
        """Nothing is there."""
        return 0
