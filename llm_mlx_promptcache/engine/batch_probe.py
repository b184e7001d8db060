"""The trial of batching: a model runs a few steps together and alone, once, and must agree.

The classes of layers don't tell: the faults are in models' own code, which takes positions from
padded rows or lays a mask over the wrong axis. So before its first batch each model takes a few
steps in one: rows of different lengths are prefilled alone, merged, joined, left and taken out as
the engine does it, and compared with the same steps alone.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import CacheList, RotatingKVCache

from ..cache import device
from ..models.errors import one_line
from ..models.facts import ModelFacts
from ..models.layers import make_layers, vocab_size_of
from .batch_layers import BatchForm, can_batch, can_group, extend, extract, merge
from .forward import forward, prefill

_log = logging.getLogger(__name__)

# What reads a scalar.
ReadNumber = Callable[[mx.array], float]

# The number is the trial's: a verdict of another trial is no verdict of this one.
_KIND = "batch/1"
# One run of tokens serves as three rows: as it is after so many. They differ by more than a chunk
# of 8, and each goes on for the steps that it stays in the batch.
_SHORT, _MIDDLE, _LONG = range(3)
_STARTS, _STEPS = (3, 7, 13), (5, 4, 2)
# The longest row begins past its window, the middle one crosses it in the batch, the short one
# fills it: so all are seen, whatever the size of the model's own window.
_WINDOW = 8
# The tolerance between answers together and alone: times the model's own rounding; and, where that
# is less, times the last bit of the largest logit, or law 1's bound for float32. A model whose own
# answer depends on the chunks for other reasons gets no more than a part of its logits' range.
_TIMES_OWN, _TIMES_LAST_BIT, _LEAST, _MOST_OF_RANGE = 4.0, 2.0, 1e-4, 0.05

# Faults that so few tokens can't show, found in mlx-lm's source, by the model's module.
_NEVER = {
    "mlx_lm.models.minimax_m3_vl": "its sparse attention cuts padded rows into other blocks,"
    " once they are longer than it looks at whole",
}


class Verdict(NamedTuple):
    """The way a model's answers may be batched, and why not where they may not.

    `lasting`: it was measured, and need not be measured again.
    """

    form: BatchForm
    why: str = ""
    lasting: bool = True


class BatchProof:
    """One model's verdict: remembered from an earlier process, or found when first asked."""

    def __init__(self, model: nn.Module, identity: str, facts: ModelFacts) -> None:
        self._model = model
        self._identity = identity
        self._facts = facts
        self._verdict: Verdict | None = None

    @property
    def form(self) -> BatchForm:
        """The way answers go together; ALONE where batching would change them."""
        if self._verdict is None:
            self._verdict = self._remembered() or self._found()
            if self._verdict.form is BatchForm.ALONE:
                _log.info("this model's answers step alone: %s", self._verdict.why)
        return self._verdict.form

    def _remembered(self) -> Verdict | None:
        known = self._facts.get(self._identity, _KIND)
        if not isinstance(known, dict) or not isinstance(known.get("why"), str):
            return None
        try:
            form = BatchForm(known.get("form"))
        except ValueError:
            return None
        return Verdict(form, known["why"]) if _may_be(self._model, form) else None

    def _found(self) -> Verdict:
        verdict = self._asked()
        if verdict.lasting:
            known = {"form": verdict.form.value, "why": verdict.why}
            self._facts.put(self._identity, _KIND, known)
        return verdict

    def _asked(self) -> Verdict:
        return prove(self._model)


def _may_be(model: nn.Module, form: BatchForm) -> bool:
    """True if a remembered verdict is one that this model can have."""
    if form is BatchForm.ALONE:
        return True
    layers = make_layers(model)
    goes = can_group(layers) if form is BatchForm.GROUPED else can_batch(layers)
    return goes and type(model).__module__ not in _NEVER


def prove(model: nn.Module, number: ReadNumber | None = None, *, grouped: bool = True) -> Verdict:
    """Run a model alone and in batches: 20 passes at most, over 15 tokens or fewer.

    Nothing raises: a model that can't be tried steps alone, until another process tries it.
    `number` reads a scalar: if several ranks ask one model, all must read the same. Without
    `grouped` that form is not tried.
    """
    layers = make_layers(model)
    if not can_batch(layers):
        return Verdict(BatchForm.ALONE, "its layers have no batched form")
    if why := _NEVER.get(type(model).__module__):
        return Verdict(BatchForm.ALONE, why)
    try:
        alone = _Alone(model, number or _number)
    except Exception as error:
        device.note(error)
        return Verdict(
            BatchForm.ALONE, f"it could not be tried ({one_line(error, 120)})", lasting=False
        )
    verdict, steps = _agrees(alone, BatchForm.PLAIN)
    # A mask over the wrong axis shows in the first step.
    tried = grouped and can_group(layers)
    if verdict.form is BatchForm.ALONE and verdict.lasting and steps < 1 and tried:
        other, _ = _agrees(alone, BatchForm.GROUPED)
        return verdict if other.form is BatchForm.ALONE else other
    return verdict


class _Alone:
    """The run by itself: its layers where each row begins, and its logits [1, vocab_size]."""

    def __init__(self, model: nn.Module, number: ReadNumber) -> None:
        self.model = model
        self.number = number
        vocab_size = vocab_size_of(model)
        count = _STARTS[_LONG] + _STEPS[_LONG]
        self.tokens = [7919 * (at + 1) % vocab_size for at in range(count)]
        self.held: list[list[Any]] = []
        logits = self._run()
        self.logits = [
            [logits[start + step] for step in range(steps)]
            for start, steps in zip(_STARTS, _STEPS, strict=True)
        ]
        self.tolerance = self._tolerance(logits)

    def _run(self) -> dict[int, mx.array]:
        """The logits of each step, by position; other positions are prefilled."""
        layers, logits, done = _narrowed(make_layers(self.model)), {}, 0
        for start, steps in zip(_STARTS, _STEPS, strict=True):
            if done < start:
                prefill(self.model, layers, self.tokens[done:start])
                done = start
            while done < start + steps:
                if done in _STARTS:
                    self.held.append(copy.deepcopy(layers))
                logits[done] = forward(self.model, layers, mx.array([[self.tokens[done]]]))
                mx.eval(logits[done])
                done += 1
        return logits

    def _tolerance(self, logits: dict[int, mx.array]) -> float:
        """The most that other logits may be off: judged by the whole run in one chunk."""
        layers = make_layers(self.model)
        most = _WINDOW if _has_windows(layers) else len(self.tokens)
        whole = self.model(mx.array([self.tokens]), cache=layers)
        positions = [position for position in logits if position < most]
        own = mx.stack(
            [_apart(whole[:, position], logits[position]) for position in positions]
        ).max()
        every = mx.concatenate(list(logits.values()))
        finite = mx.where(mx.isfinite(every), every, 0).astype(mx.float32)
        last_bit = mx.finfo(every.dtype).eps * mx.abs(finite).max()
        rounding = mx.minimum(_TIMES_OWN * own, _MOST_OF_RANGE * (finite.max() - finite.min()))
        floor = mx.maximum(_TIMES_LAST_BIT * last_bit, _LEAST)
        return self.number(mx.maximum(rounding, floor))


def _agrees(alone: _Alone, form: BatchForm) -> tuple[Verdict, int]:
    """The verdict on batches of this form, and the number of steps that it took."""
    passed = [0] * len(_STARTS)
    steps = 0
    try:
        for rows, logits in _together(alone, form):
            right = mx.concatenate([alone.logits[row][passed[row]] for row in rows])
            apart = alone.number(_apart(logits, right))
            if not apart <= alone.tolerance:
                off, rounding = f"{apart:.1e}", f"{alone.tolerance:.1e}"
                why = f"its logits in a batch are off by {off}, {rounding} is rounding"
                return Verdict(BatchForm.ALONE, why), steps
            for row in rows:
                passed[row] += 1
            steps += 1
    except Exception as error:
        why = f"its steps in a batch fail ({one_line(error, 120)})"
        # Other answers are under way, and what failed may have been their work.
        lasting = not device.note(error)
        return Verdict(BatchForm.ALONE, why, lasting=lasting), steps
    return Verdict(form), steps


def _together(alone: _Alone, form: BatchForm) -> Iterator[tuple[list[int], mx.array]]:
    """Steps of rows that join, stay and leave as the engine's do, with their logits."""
    taken = list(_STARTS)
    held = [list(layers) for layers in alone.held]

    def step(layers: list[Any], rows: list[int]) -> tuple[list[int], mx.array]:
        tokens = [[alone.tokens[taken[row]]] for row in rows]
        for row in rows:
            taken[row] += 1
        return rows, forward(alone.model, layers, mx.array(tokens))

    batch = merge(held[_SHORT], held[_MIDDLE], form)
    yield step(batch, [_SHORT, _MIDDLE])
    extend(batch, held[_LONG])
    for _ in range(2):
        yield step(batch, [_SHORT, _MIDDLE, _LONG])
    for layer in batch:
        layer.filter([_SHORT, _MIDDLE])
    yield step(batch, [_SHORT, _MIDDLE])
    yield step(extract(batch, _SHORT), [_SHORT])


def _narrowed(layers: Sequence[Any]) -> list[Any]:
    """New layers with windows that few tokens fill, so that a model's steps past them show.

    Chunks then see more than steps do, so only steps are compared past such a window.
    """
    for layer in layers:
        if type(layer) is CacheList:
            _narrowed(layer.caches)
        elif type(layer) is RotatingKVCache:
            layer.max_size = min(layer.max_size, _WINDOW)
    return list(layers)


def _has_windows(layers: Sequence[Any]) -> bool:
    kinds = [one for layer in layers for one in getattr(layer, "caches", [layer])]
    return any(type(one) is RotatingKVCache for one in kinds)


def _number(one: mx.array) -> float:
    return cast("float", one.item())


def _apart(one: mx.array, other: mx.array) -> mx.array:
    """The largest difference; NaN where only one has a number. Equal infinities are equal."""
    one, other = one.astype(mx.float32), other.astype(mx.float32)
    return mx.where(one == other, 0.0, mx.abs(one - other)).max()
