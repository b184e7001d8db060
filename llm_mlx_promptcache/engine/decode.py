"""Decode: answers take their steps together, each in a slot of a batch."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator

from ..cache.insertion import Rows
from .batch_layers import BatchForm
from .parts import Parts
from .sequence import Sequence
from .slots import Slot, Step


class Decode:
    """The answers of one model at work, which `stop_ids` end.

    A sequence's layers move from its handle into a batch as its answer begins, and back as it ends.
    """

    def __init__(self, parts: Parts, stop_ids: Collection[int]) -> None:
        self._kv = parts.kv
        self._batches = parts.batches
        self._drafting = parts.drafting
        self._stop_ids = stop_ids
        self._of: dict[Slot, Sequence] = {}

    def __len__(self) -> int:
        return len(self._of)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence.slot is not None and sequence.slot in self._of

    def __iter__(self) -> Iterator[Sequence]:
        return iter(list(self._of.values()))

    @property
    def tokens(self) -> int:
        """The number of tokens that their layers have room for, padding included."""
        return self._batches.tokens

    @property
    def form(self) -> BatchForm:
        """The way answers go together; measured with the model if not known yet."""
        return self._batches.form

    def begin(self, sequence: Sequence, path: array[int]) -> None:
        """Begin the answer of a prompt that is done, or go on with it, behind `path`."""
        handle = sequence.handle
        assert handle is not None
        slot = sequence.slot = sequence.slot or self._new_slot(sequence)
        slot.path, slot.number = path, handle.number
        layers, handle.layers = handle.layers, []
        self._batches.add(slot, layers)
        self._of[slot] = sequence

    def step(self) -> Iterator[tuple[Sequence, Step]]:
        """One step of every answer, as `Batches.step`; the reader may end each."""
        for slot, step in self._batches.step():
            yield self._of[slot], step

    def recall(self, sequence: Sequence) -> None:
        """Look up earlier text for an answer's drafts, while its first token is computed."""
        sequence.recalled = True
        self._drafting.recall(sequence)

    def share(self, sequence: Sequence) -> None:
        """Copy an answer's rows to the cache, for a request that needs them meanwhile."""
        handle = sequence.handle
        assert handle is not None
        assert sequence.slot is not None
        handle.layers = self._batches.layers_of(sequence.slot)
        self._kv.insert(handle, sequence.path, Rows.COPY)
        handle.layers = []

    def suspend(self, sequence: Sequence) -> None:
        """Take back the layers of an answer that goes on later."""
        assert sequence.handle is not None
        assert sequence.slot is not None
        del self._of[sequence.slot]
        sequence.handle.layers = self._batches.suspend(sequence.slot)

    def leave(self, sequence: Sequence) -> None:
        """Take back the layers of an answer that ends."""
        assert sequence.handle is not None
        assert sequence.slot is not None
        del self._of[sequence.slot]
        sequence.handle.layers = self._batches.leave(sequence.slot, sequence.behind)

    def lose(self, sequence: Sequence) -> None:
        """Forget an answer whose layers its batch has lost."""
        assert sequence.slot is not None
        del self._of[sequence.slot]

    def give_up(self) -> None:
        """Forget all answers; each can begin again behind what it has said."""
        self._batches.give_up()
        self._of.clear()

    def clear(self) -> None:
        """Forget all answers for good, and what is known of batches that failed."""
        self._batches.clear()
        self._of.clear()

    def _new_slot(self, sequence: Sequence) -> Slot:
        """A slot for an answer that begins, with what may be known of it already."""
        return sequence.new_slot(self._stop_ids, self._drafting.drafter(sequence, self._stop_ids))
