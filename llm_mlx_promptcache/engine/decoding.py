"""Decoding: answers that take their steps together, a token each.

While a step is read the next one is on its way, unless a grammar must see the token first: its
mask depends on it. One answer alone runs tokens that its grammar forces all at once.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn

from ..cache import device
from .forward import BatchForm, can_batch, extend, extract, forward, merge, quantise
from .request import KVSettings
from .sampling import Chooser, Likely, Mark

if TYPE_CHECKING:
    from .constraint import Constraint

_CLEAR_EVERY = 256


class Step(NamedTuple):
    """What one row got: its tokens in order, what was likely instead, or what went wrong.

    `restart`: it failed with others, and can start again at its `path` and `last`.
    """

    tokens: list[int]
    likely: Likely | None = None
    error: Exception | None = None
    restart: bool = False


class Spoilt(RuntimeError):
    """The device failed under somebody else: tokens that were read since may be garbage."""


class Row:
    """One answer in a batch; `path` holds the tokens that its layers cover.

    `last` is fed first: the prompt's last token, or one that was chosen before a restart, which
    is then told (`owed`). `left` is how many tokens more are wanted.
    """

    def __init__(
        self,
        path: array[int],
        last: int,
        chooser: Chooser,
        left: int,
        constraint: Constraint | None = None,
        kv: KVSettings | None = None,
        logprobs: int | None = None,
    ) -> None:
        self.path = path
        self.last: int | None = last
        self.owed = False
        self.chooser = chooser
        self.left = left
        self.constraint = constraint
        self.kv = kv
        self.logprobs = logprobs
        self.likely: Likely | None = None
        self.error: Exception | None = None
        # Where chooser and `likely` stood before the last choice.
        self.chosen_at: tuple[Mark, Likely | None] = (chooser.mark(), None)

    def rewind(self) -> None:
        """Undo the last choice, which nobody has read: it may be one of garbage."""
        if self.last is None:
            self.last, self.path, self.owed = self.path[-1], self.path[:-1], False
            mark, self.likely = self.chosen_at
            self.chooser.reset(mark)


class Decoding:
    """Rows and their layers: alone they are the model's own kind, together its batched forms."""

    def __init__(self, model: nn.Module, row: Row, layers: list[Any]) -> None:
        self._model = model
        self.rows = [row]
        self._layers = layers
        self._together = self.broken = False
        self._since = device.failures()
        self._read: list[int] | None = None  # the tokens of this step, once they are known
        self._tokens = mx.array([row.last])
        self._count = 0

    def takes(self, layers: Sequence[Any]) -> bool:
        """Whether another answer with such layers can join."""
        return can_batch(layers) and (self._together or can_batch(self._layers))

    def join(self, row: Row, layers: list[Any], form: BatchForm) -> None:
        """Another answer takes its steps with these; its list of layers is emptied."""
        self.broken = True  # unless all goes well: layers are given up one by one
        with device.work():
            if self._together:
                extend(self._layers, layers)
            else:
                self._layers = merge(self._layers, layers, form)
                self._together = True
        self.broken = False
        self.rows.append(row)
        self._tokens = mx.concatenate([self._tokens, mx.array([row.last], self._tokens.dtype)])

    def layers_of(self, row: Row) -> list[Any]:
        """Layers that hold `row.path`: its own where it is alone, else a copy."""
        if self.broken:
            return []
        if not self._together:
            return self._layers
        return extract(self._layers, self.rows.index(row))

    def leave(self, row: Row) -> list[Any]:
        """Take an answer out; returns layers that hold `row.path`."""
        index = self.rows.index(row)
        keep = [at for at in range(len(self.rows)) if at != index]
        try:
            with device.work():
                layers = self.layers_of(row)
                for layer in self._layers if keep and not self.broken else []:
                    layer.filter(keep)
        except Exception:
            self.broken = True  # those that stay begin again
            raise
        finally:
            self.rows.pop(index)
            if keep:
                self._tokens = self._tokens[mx.array(keep)]
        if not keep:
            self._layers = []
        return layers

    def suspend(self, row: Row) -> list[Any]:
        """Take out an answer that goes on later, at its `path` and `last`; returns its layers."""
        try:
            with device.work():
                value = self._values()[self.rows.index(row)]
        except Exception:
            row.rewind()
            raise
        try:
            if row.last is None and row.constraint is not None and row.error is None:
                row.constraint.consume(value)
        except Exception as error:
            row.error = error
        row.last, row.owed = value, row.last is None or row.owed
        return self.leave(row)

    def step(self) -> list[Step]:
        """Run every row's next token, choose the one that follows; returns what came of each.

        Where it raises, the layers are of no use any more, and the rows can start again elsewhere
        at their `path` and `last`: all of them where it is Spoilt.
        """
        marks = [(row.chooser.mark(), row.likely, row.chosen_at) for row in self.rows]
        self._read = None
        try:
            with device.work():
                return self._step()
        except Exception:
            for at, (row, (mark, likely, chosen_at)) in enumerate(
                zip(self.rows, marks, strict=True)
            ):
                row.chooser.reset(mark)
                row.likely, row.chosen_at = likely, chosen_at
                if self._read is None:
                    row.rewind()
                elif row.last is None:
                    # Its grammar has been told this token already; who asked has not.
                    row.last, row.owed = self._read[at], True
            raise

    def _step(self) -> list[Step]:
        if self.broken:
            raise RuntimeError("these answers' layers were lost when another one joined")
        alone = not self._together
        values: list[int] | None = None
        runs: list[list[int]] = [[] for _ in self.rows]
        if any(row.constraint is not None for row in self.rows):
            values = self._values()
            pairs = zip(self.rows, values, strict=True)
            runs = [self._consume(row, value, alone) for row, value in pairs]
        if alone:
            self._quantise(self.rows[0])
        inputs = self._tokens[:, None]
        if alone and runs[0]:
            assert values is not None
            inputs = mx.array([[values[0], *runs[0]]])
        logits = forward(self._model, self._layers, inputs)
        if values is not None:
            mx.async_eval(logits)  # type: ignore[no-untyped-call]
        before = [row.likely for row in self.rows]
        for row in self.rows:
            row.chosen_at = row.chooser.mark(), row.likely
        following = mx.concatenate(
            [self._choose(row, logits[at : at + 1]) for at, row in enumerate(self.rows)]
        )
        mx.async_eval(following, *_asked(self.rows))  # type: ignore[no-untyped-call]
        values = self._values() if values is None else values
        self._tokens = following
        self._count += 1
        if self._count % _CLEAR_EVERY == 0:
            mx.clear_cache()
        return [
            self._told(row, value, run, likely)
            for row, value, run, likely in zip(self.rows, values, runs, before, strict=True)
        ]

    def _values(self) -> list[int]:
        """Read the tokens of this step; Spoilt where the device failed before they were read."""
        read = cast("list[int]", self._tokens.tolist())
        if device.failures() != self._since:
            raise Spoilt("the device failed meanwhile, so these answers choose their tokens again")
        self._read = read
        return read

    def _consume(self, row: Row, value: int, alone: bool) -> list[int]:
        """Tell a row's grammar its token; returns those that must follow, where they may run."""
        constraint = row.constraint
        if constraint is None or row.error is not None:
            return []
        try:
            if row.last is None:
                constraint.consume(value)
            if not alone or row.logprobs is not None:
                return []
            new = 0 if row.last is not None and not row.owed else 1
            run = constraint.forced()[: max(0, row.left - new)]
            run = run[: self._room(row, len(run))]
            for token in run:
                constraint.consume(token)
            row.chooser.follow(run)
            return run
        except Exception as error:
            row.error = error
            return []

    @staticmethod
    def _room(row: Row, count: int) -> int:
        """Rows are quantised between two tokens, so no run of them passes that place."""
        if row.kv is None or len(row.path) >= row.kv.start:
            return count
        return min(count, row.kv.start - len(row.path) - 1)

    def _quantise(self, row: Row) -> None:
        if row.kv is not None and len(row.path) == row.kv.start:
            quantise(self._layers, row.kv)

    def _choose(self, row: Row, logits: mx.array) -> mx.array:
        """A row's next token, [1]; one that can't choose gets any, and says why."""
        try:
            if row.error is None:
                held = logits if row.constraint is None else row.constraint.mask(logits)
                token = row.chooser.choose(held)
                if row.logprobs is not None:
                    row.likely = Likely.of(logits, token, row.logprobs)
                return token.astype(mx.int32)
        except Exception as error:
            row.error = error
        return mx.zeros((1,), mx.int32)

    @staticmethod
    def _told(row: Row, value: int, run: list[int], likely: Likely | None) -> Step:
        fed = [value, *run]
        row.path.extend(fed)
        told = fed if row.last is None or row.owed else run
        row.last, row.owed = None, False
        row.left -= len(told)
        return Step(told, likely, row.error)


def _asked(rows: Sequence[Row]) -> list[mx.array]:
    return [part for row in rows if row.likely is not None for part in row.likely.arrays()]
