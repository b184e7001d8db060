"""Drafting: whether a model's answers are drafted, and from which texts."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from .draft_probe import DraftProof
from .drafts import Drafter, joined
from .kv import KVManager
from .sequence import Sequence

NO_DRAFTS = "drafts are off where a model runs over several ranks"


class Drafting(Protocol):
    """Drafts for the answers of one model."""

    @property
    def undrafted(self) -> str:
        """The reason why none are drafted, as far as it is known; "" where they are."""

    def drafter(self, sequence: Sequence, stop_ids: Collection[int]) -> Drafter | None:
        """The drafter of an answer that begins and that `stop_ids` end; None without drafts."""

    def recall(self, sequence: Sequence) -> None:
        """Look up earlier text for an answer's drafts, while its first token is computed."""


class ModelDrafting:
    """Drafts from what `kv` holds of earlier text, for a model that passes its trial."""

    def __init__(self, proof: DraftProof, kv: KVManager) -> None:
        self._proof = proof
        self._kv = kv

    @property
    def undrafted(self) -> str:
        """`Drafting.undrafted`; the trial is not run for it."""
        return self._proof.known

    def drafter(self, sequence: Sequence, stop_ids: Collection[int]) -> Drafter | None:
        """`Drafting.drafter`, with what stood behind its very prompt before."""
        if not sequence.prepared.request.drafts:
            return None
        return Drafter(sequence.ids, stop_ids, self._kv.said_behind(sequence.prepared))

    def recall(self, sequence: Sequence) -> None:
        """`Drafting.recall`, in memory and on the disk."""
        if sequence.slot is not None and sequence.slot.drafter is not None:
            behind, texts = self._kv.said(sequence.prepared)
            sequence.slot.drafter.learn(behind, joined(texts))


class NoDrafting:
    """Nothing is drafted, for a reason that lies not in the model."""

    def __init__(self, undrafted: str) -> None:
        self.undrafted = undrafted

    def drafter(self, sequence: Sequence, stop_ids: Collection[int]) -> Drafter | None:
        """`Drafting.drafter`: none."""
        return None

    def recall(self, sequence: Sequence) -> None:
        """`Drafting.recall`: there is nobody to learn it."""
