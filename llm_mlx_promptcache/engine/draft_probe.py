"""The trial of drafts: a pass over several tokens must choose what a pass for each would, once.

Masks and positions are models' own code. So before its first draft each model runs a few tokens
both ways, going back behind a pass as the engine does.
"""

from __future__ import annotations

import copy
import logging
from typing import Any, NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn

from ..cache import device
from ..cache.layers.rewinding import kinds_that_stay, marks_of, rewind
from ..models.errors import one_line
from ..models.facts import ModelFacts
from ..models.layers import make_layers, vocab_size_of
from .forward import forward, forward_each, prefill

_log = logging.getLogger(__name__)

# The number is the trial's: a verdict of another trial is no verdict of this one.
_KIND = "drafts/1"
_START = 7  # tokens that are prefilled
_PASSES = ((4, 2), (6, 6), (5, 1))  # tokens of each pass, and how many of them stay
_MOST_NAMES = 120  # characters
# The tolerance of logits: times the last bit of the largest, or law 1's bound for float32.
_TIMES_LAST_BIT, _LEAST = 8.0, 1e-4


class DraftVerdict(NamedTuple):
    """The verdict on drafts: `why` they are not used, "" where they are; `lasting`: for good."""

    why: str = ""
    lasting: bool = True


class DraftProof:
    """One model's verdict: remembered from an earlier process, or found when first asked.

    Layers that can't go back are seen without a pass, so they are a fact once a model is loaded.
    """

    def __init__(self, model: nn.Module, identity: str, facts: ModelFacts) -> None:
        self._model = model
        self._identity = identity
        self._facts = facts
        self._verdict = self._seen()

    @property
    def why_not(self) -> str:
        """The reason why this model's answers are not drafted; "" where they are."""
        if self._verdict is None:
            self._verdict = _logged(self._remembered() or self._found())
        return self._verdict.why

    @property
    def known(self) -> str:
        """The same as far as it is known; runs nothing."""
        verdict = self._verdict or self._remembered()
        return verdict.why if verdict is not None else ""

    def _seen(self) -> DraftVerdict | None:
        why = _why_layers_stay(make_layers(self._model))
        if why and remembered(self._identity, self._facts) != why:
            self._keep(why)
        return _logged(DraftVerdict(why)) if why else None

    def _remembered(self) -> DraftVerdict | None:
        why = remembered(self._identity, self._facts)
        return None if why is None else DraftVerdict(why)

    def _found(self) -> DraftVerdict:
        verdict = prove(self._model)
        if verdict.lasting:
            self._keep(verdict.why)
        return verdict

    def _keep(self, why: str) -> None:
        self._facts.put(self._identity, _KIND, {"why": why})


def _logged(verdict: DraftVerdict) -> DraftVerdict:
    if verdict.why:
        _log.info("this model's answers are not drafted: %s", verdict.why)
    return verdict


def remembered(identity: str, facts: ModelFacts) -> str | None:
    """The reason why a model's answers are not drafted; "" where they are, None if unknown."""
    known = facts.get(identity, _KIND)
    why = known.get("why") if isinstance(known, dict) else None
    return why if isinstance(why, str) else None


def prove(model: nn.Module) -> DraftVerdict:
    """Run a few tokens one by one and several a pass: 21 passes at most. Never raises."""
    layers = make_layers(model)
    if why := _why_layers_stay(layers):
        return DraftVerdict(why)
    try:
        vocab_size = vocab_size_of(model)
        count = _START + sum(kept for _, kept in _PASSES) + max(wide for wide, _ in _PASSES)
        tokens = [7919 * (at + 1) % vocab_size for at in range(count)]
        prefill(model, layers, tokens[:_START])
        singly = _singly(model, copy.deepcopy(layers), tokens)
        return _compared(singly, _drafted(model, layers, tokens))
    except Exception as error:
        # The answer that asks is under way, and what failed may have been its own work.
        lasting = not device.note(error)
        return DraftVerdict(
            f"its passes over several tokens fail ({one_line(error, 120)})", lasting
        )


def _why_layers_stay(layers: list[Any]) -> str:
    """The reason why layers can't go back behind a draft; "" where they can."""
    kinds = kinds_that_stay(layers)
    return f"its layers of kind {', '.join(kinds)[:_MOST_NAMES]} can't go back" if kinds else ""


def _singly(model: nn.Module, layers: list[Any], tokens: list[int]) -> dict[int, mx.array]:
    """The logits [vocab_size] behind each token, by its position."""
    found = {}
    for at in range(_START, len(tokens)):
        found[at] = forward(model, layers, mx.array([[tokens[at]]]))[0]
        mx.eval(found[at])
    return found


def _drafted(model: nn.Module, layers: list[Any], tokens: list[int]) -> list[tuple[int, mx.array]]:
    """The same in passes over several tokens: (position, logits [vocab_size]) of each."""
    found, at = [], _START
    for wide, kept in _PASSES:
        marks = marks_of(layers)
        run = tokens[at : at + kept] + [tokens[0]] * (wide - kept)  # the rest is a wrong guess
        logits = forward_each(model, layers, run)
        mx.eval(logits)
        found += [(at + each, logits[each]) for each in range(kept)]
        if rewind(layers, marks, wide, kept):
            forward(model, layers, mx.array([run[:kept]]))
        at += kept
    return found


def _compared(singly: dict[int, mx.array], drafted: list[tuple[int, mx.array]]) -> DraftVerdict:
    every = mx.stack([logits for _, logits in drafted])
    finite = mx.where(mx.isfinite(every), every, 0).astype(mx.float32)
    last_bit = mx.finfo(every.dtype).eps * _number(mx.abs(finite).max())
    most = max(_TIMES_LAST_BIT * last_bit, _LEAST)
    for at, logits in drafted:
        one, other = logits.astype(mx.float32), singly[at].astype(mx.float32)
        apart = _number(mx.where(one == other, 0.0, mx.abs(one - other)).max())
        if not apart <= most:
            return DraftVerdict(
                f"its logits in a longer pass are off by {apart:.1e}, {most:.1e} may be"
            )
    return DraftVerdict()


def _number(one: mx.array) -> float:
    return cast("float", one.item())
