"""All answers of a model that are being decoded, grouped into batches that keep padding small."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import mlx.nn as nn

from ..cache import device
from .admission import expected, fits_together
from .batch import Batch, LayersState, Spoilt
from .batch_layers import BatchForm
from .batch_probe import BatchProof
from .draft_probe import DraftProof
from .slots import Slot, Step

_log = logging.getLogger(__name__)


class Batches:
    """Slots that step together where the model passed its trial and padding stays small."""

    def __init__(
        self, model: nn.Module, proof: BatchProof, drafts: DraftProof | None = None
    ) -> None:
        self._model = model
        self._proof = proof
        self._drafts = drafts
        self._of: dict[Slot, Batch] = {}
        self._together = True

    def add(self, slot: Slot, layers: list[Any]) -> None:
        """Add an answer; the list of layers is this object's from now on."""
        for batch in self._all():
            if self._takes(batch, slot, layers):
                batch.join(slot, layers, self._proof.form)
                self._of[slot] = batch
                return
        self._of[slot] = self._begun(slot, layers)

    def step(self) -> Iterator[tuple[Slot, Step]]:
        """One step of every slot.

        Slots that fail together each start again alone: one of them, or batches of this model, may
        be at fault. One that fails alone gets its error. No slot steps after a failure, since
        nobody knows whose work it was.
        """
        before = device.failures()
        for batch in self._all():
            slots = list(batch.slots)
            try:
                steps = batch.step()
            except Spoilt:  # the owner of these slots sees it, and has them begin again
                return
            except Exception as error:
                steps = self._failed(slots, error, batch.state)
            yield from zip(slots, steps, strict=True)
            if device.failures() != before:
                return

    def give_up(self) -> list[Slot]:
        """All slots, whose layers are lost: each can go on at its `path` and `last`."""
        slots = [slot for batch in self._all() for slot in batch.slots]
        for slot in slots:
            slot.rewind()
        self._of.clear()
        return slots

    def clear(self) -> None:
        """Forget all slots and failures, as if nobody had asked yet."""
        self._of.clear()
        self._together = True

    @property
    def form(self) -> BatchForm:
        """The way answers go together; found out with the model if it is not known yet."""
        return self._proof.form

    def layers_of(self, slot: Slot) -> list[Any]:
        """Layers that hold `slot.path`; its own where it is alone."""
        return self._of[slot].layers_of(slot)

    def leave(self, slot: Slot, behind: int = 0) -> list[Any]:
        """Remove an answer that ended `behind` tokens before its last step did.

        Returns its layers, empty where a failure took them.
        """
        batch = self._of.pop(slot, None)
        try:
            return batch.leave(slot, behind) if batch is not None else []
        except Exception as error:
            _log.warning("what an answer had computed could not be kept: %s", error)
            return []

    @property
    def tokens(self) -> int:
        """The number of tokens that all batches have room for, padding included."""
        return sum(
            len(batch.slots) * max(len(slot.path) for slot in batch.slots) for batch in self._all()
        )

    def suspend(self, slot: Slot) -> list[Any]:
        """Remove an answer that goes on later, at its `path` and `last`; returns its layers."""
        batch = self._of.pop(slot)
        try:
            return batch.suspend(slot)
        except Exception as error:
            _log.warning("what an answer had computed could not be kept: %s", error)
            return []

    def _begun(self, slot: Slot, layers: list[Any]) -> Batch:
        """A batch that an answer begins."""
        return Batch(self._model, slot, layers, self._drafts)

    def _takes(self, batch: Batch, slot: Slot, layers: list[Any]) -> bool:
        """True if a slot can join others; the check that may take time comes last."""
        if not self._together or not _fits(batch, slot) or not batch.takes(layers):
            return False
        return self._proof.form is not BatchForm.ALONE

    def _failed(self, slots: list[Slot], error: Exception, state: LayersState) -> list[Step]:
        if len(slots) == 1 and state is not LayersState.LOST:
            return [Step([], error=error)]  # `leave` gives back what its layers still hold
        self._together = False
        for slot in slots:
            del self._of[slot]
        return [Step([], restart=True)] * len(slots)

    def _all(self) -> list[Batch]:
        return list(dict.fromkeys(self._of.values()))


def _fits(batch: Batch, slot: Slot) -> bool:
    if slot.kv is not None or any(other.kv is not None for other in batch.slots):
        return False
    lengths = [expected(len(other.path), other.left) for other in batch.slots]
    return fits_together(expected(len(slot.path), slot.left), lengths)
