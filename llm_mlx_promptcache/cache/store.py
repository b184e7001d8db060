"""The interface of a store, as PromptCache uses it, and NullStore, which keeps nothing."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from .span import NOTHING
from .worth import StoredOrder

if TYPE_CHECKING:
    from .layers.layout import Layout
    from .layers.pieces import MxArray, Piece
    from .span import DamagedSpan, Head, NewSpan, StoredPath, StoredSpan, StoredTensor
    from .trie import Tokens


class SpanReader(Protocol):
    """A stored span while it is read: the head at once, layers in their order, then digests.

    The content is not to be trusted before `verify` has passed. DamagedSpan if it is not as it was
    written, OSError if the system can't read it just now.
    """

    broken: DamagedSpan | None  # the damage that was seen
    coded: bool  # whether its bytes are to be unpacked

    @property
    def name(self) -> str:
        """Its name in errors."""

    @property
    def size(self) -> int:
        """Bytes to read, all in all."""

    @property
    def head(self) -> Head:
        """The span's place on its path, and its tokens."""

    def outline(self) -> list[Piece | None]:
        """Pieces to plan with: not read, they have nothing but a shape."""

    def entries(self, layer: int) -> list[StoredTensor | None]:
        """The stored arrays of a layer."""

    def extent(self, first: int, last: int) -> tuple[int, int]:
        """The place of the bytes of layers [first, last) in the data."""

    def leave_ends(self) -> None:
        """Have no states and windows, if they can be left unread; before any layer is read."""

    def read_ahead(self) -> None:
        """Have all of it read in advance, if the system can."""

    def read_into(self, buffers: Sequence[memoryview]) -> None:
        """Read on into these buffers, which are next in the data."""

    def pieces(self, first: int, last: int, data: MxArray) -> list[Piece | None]:
        """The pieces of layers [first, last) out of the bytes of their extent."""

    def verify(self) -> None:
        """Check after all was read: DamagedSpan unless it is as it was written."""

    def pause(self) -> None:
        """Release scarce resources of the system until the next read."""

    def close(self) -> None:
        """Close it."""


class Entered(NamedTuple):
    """A span that was stored: its ids and those of its parent, and what it is worth to keep.

    `path` is its path's digest, which is the same once it is stored anew.
    """

    file_id: str
    parent: str
    path: bytes
    tier: int
    tokens: int
    nbytes: int


class EvictionWatch(Protocol):
    """An observer of stored spans, which knows in what order they are best evicted."""

    def preferred(self) -> StoredOrder:
        """The order to evict in now."""

    def stored(self, span: Entered) -> None:
        """A span was stored."""

    def used(self, file_ids: Sequence[str]) -> None:
        """A request found these, in the order of its path."""

    def evicted(self, file_ids: Sequence[str]) -> None:
        """These were evicted, the ends of paths first."""

    def removed(self, file_ids: Sequence[str] | None) -> None:
        """These were removed for another reason; None for all."""


class NoWatch:
    """Nobody watches: recency decides."""

    def preferred(self) -> StoredOrder:
        """Recency."""
        return StoredOrder.RECENCY

    def stored(self, span: Entered) -> None:
        """Nothing is noted."""

    def used(self, file_ids: Sequence[str]) -> None:
        """Nothing is noted."""

    def evicted(self, file_ids: Sequence[str]) -> None:
        """Nothing is noted."""

    def removed(self, file_ids: Sequence[str] | None) -> None:
        """Nothing is noted."""


@runtime_checkable
class WatchedStore(Protocol):
    """A store that can be watched."""

    def watch(self, watch: EvictionWatch) -> None:
        """Tell this one; whoever watches already stays."""


class Store(Protocol):
    """A place where spans outlive the process."""

    def layout(self, namespace: str) -> Layout | None:
        """The kinds of layer in a namespace's spans, if it has any."""

    def lookup(self, namespace: str, tokens: Tokens[int]) -> StoredPath:
        """The stored part of `tokens`, from the path's start."""

    def said_behind(self, namespace: str, tokens: Tokens[int], most: int) -> Tokens[int]:
        """At most `most` tokens that stood behind these last, if that is known at once."""

    @property
    def unseen(self) -> bool:
        """True if the last lookup could not see the stored spans, and did not wait for that."""

    def open(
        self,
        namespace: str,
        span: StoredSpan,
        tokens: Tokens[int],
        more: Sequence[StoredSpan] = (),
    ) -> SpanReader | None:
        """A span to be read, checked as far as its head goes; None if it is not available.

        `more` of the path is in the same file.
        """

    def damaged(self, span: StoredSpan, error: DamagedSpan) -> None:
        """Delete a span that was found damaged, with all that hangs on it.

        After DamagedEnds its states and windows alone.
        """

    def unreadable(self, error: Exception) -> None:
        """Report once that something could not be read, by no fault of its own: it stays."""

    def used(self, spans: Sequence[StoredSpan]) -> None:
        """Note that a fetch went on from these."""

    def save(self, span: NewSpan) -> bool:
        """Store a span whose path is stored up to its start; any thread may call this."""

    @property
    def pause(self) -> float:
        """Seconds for which `save` tries nothing, since others are in the way; mostly 0."""

    def try_again(self) -> None:
        """End such a pause."""

    def tend(self) -> bool:
        """Finish the work that lookups left, and keep to the budget; False if more is left."""

    def pin(self, namespace: str, tokens: Tokens[int], *, pinned: bool) -> bool:
        """Keep the spans along a path from being evicted, or no longer; True if there are any."""

    def label(self, namespace: str, name: str, identity: str = "") -> None:
        """Record the user's name for the model of a namespace, and the model's identity."""

    def by_model(self) -> list[tuple[str, int, int]]:
        """Each model's name, with the spans and bytes stored of it."""

    def stats(self) -> dict[str, int]:
        """Spans, tokens and bytes held, bytes written by this process, and the budget."""

    def clear(self, *, model: str | None = None, days: float | None = None) -> int:
        """Remove stored spans, of one model or unused for days if given; returns bytes freed."""


class NullStore:
    """A store that stores nothing: the off switch."""

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

    def save(self, span: NewSpan) -> bool:
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

    def by_model(self) -> list[tuple[str, int, int]]:
        """Nothing is stored of any."""
        return []

    def stats(self) -> dict[str, int]:
        """All zero."""
        return dict.fromkeys(("spans", "tokens", "bytes", "written", "budget"), 0)

    def clear(self, *, model: str | None = None, days: float | None = None) -> int:
        """Nothing is there."""
        return 0
