"""All answers of a model that are being decoded, in batches of those that go well together."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import mlx.nn as nn

from ..cache import device
from .admission import expected, fits_together
from .batch_probe import BatchProof
from .decoding import Decoding, Row, Spoilt, Step
from .forward import BatchForm

_log = logging.getLogger(__name__)


class Batches:
    """Rows take their steps together where the model was seen to, and padding stays small."""

    def __init__(self, model: nn.Module, proof: BatchProof) -> None:
        self._model = model
        self._proof = proof
        self._of: dict[Row, Decoding] = {}
        self._together = True

    def add(self, row: Row, layers: list[Any]) -> None:
        """An answer begins; the list of layers is this object's from now on."""
        for decoding in self._all():
            if self._takes(decoding, row, layers):
                decoding.join(row, layers, self._proof.form)
                self._of[row] = decoding
                return
        self._of[row] = Decoding(self._model, row, layers)

    def step(self) -> Iterator[tuple[Row, Step]]:
        """One step of every row.

        Where rows fail together, each starts again alone: one of them, or batches of this model,
        may be at fault. One that fails alone has its error. Nobody steps behind a failure: whose
        work it was, nobody knows.
        """
        before = device.failures()
        for decoding in self._all():
            rows = list(decoding.rows)
            try:
                steps = decoding.step()
            except Spoilt:  # who owns these rows sees that, and has them begin again
                return
            except Exception as error:
                steps = self._failed(rows, error, decoding.broken)
            yield from zip(rows, steps, strict=True)
            if device.failures() != before:
                return

    def give_up(self) -> list[Row]:
        """All rows, whose layers are lost: each can go on at its `path` and `last`."""
        rows = [row for decoding in self._all() for row in decoding.rows]
        for row in rows:
            row.rewind()
        self._of.clear()
        return rows

    def layers_of(self, row: Row) -> list[Any]:
        """Layers that hold `row.path`; its own where it is alone."""
        return self._of[row].layers_of(row)

    def leave(self, row: Row) -> list[Any]:
        """An answer has ended; returns its layers, empty where a failure took them."""
        decoding = self._of.pop(row, None)
        try:
            return decoding.leave(row) if decoding is not None else []
        except Exception as error:
            _log.warning("what an answer had computed could not be kept: %s", error)
            return []

    @property
    def tokens(self) -> int:
        """How many tokens all batches hold room for, padding included."""
        return sum(
            len(decoding.rows) * max(len(row.path) for row in decoding.rows)
            for decoding in self._all()
        )

    def suspend(self, row: Row) -> list[Any]:
        """An answer goes on later, at its `path` and `last`; returns its layers, as `leave`."""
        decoding = self._of.pop(row)
        try:
            return decoding.suspend(row)
        except Exception as error:
            _log.warning("what an answer had computed could not be kept: %s", error)
            return []

    def _takes(self, decoding: Decoding, row: Row, layers: list[Any]) -> bool:
        """Whether a row can join others; what takes time to find out is asked last."""
        if not self._together or not _fits(decoding, row) or not decoding.takes(layers):
            return False
        return self._proof.form is not BatchForm.ALONE

    def _failed(self, rows: list[Row], error: Exception, broken: bool) -> list[Step]:
        if len(rows) == 1 and not broken:  # what its layers still are is for `leave` to give back
            return [Step([], error=error)]
        self._together = False
        for row in rows:
            del self._of[row]
        return [Step([], restart=True)] * len(rows)

    def _all(self) -> list[Decoding]:
        return list(dict.fromkeys(self._of.values()))


def _fits(decoding: Decoding, row: Row) -> bool:
    if row.kv is not None or any(other.kv is not None for other in decoding.rows):
        return False
    lengths = [expected(len(other.path), other.left) for other in decoding.rows]
    return fits_together(expected(len(row.path), row.left), lengths)
