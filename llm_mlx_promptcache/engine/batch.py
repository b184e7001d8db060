"""Batch: answers that take their steps together, a token each.

While a step is read the next pass is on its way: a grammar must see the token for its mask, not for
the pass. One answer alone runs all tokens that its grammar forces at once; if some are expected, or
a draft is, the token is read first.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
import mlx.nn as nn

from ..cache import device
from ..cache.layers.rewinding import can_rewind, marks_of, rewind
from ..models.quantisation import quantise
from .batch_layers import BatchForm, can_batch, extend, extract, merge
from .forward import forward
from .sampler import Likely
from .slots import Pending, Slot, Step
from .speculation import Agreed, DraftPlan, dispatch, planned, settle

if TYPE_CHECKING:
    from .draft_probe import DraftProof

# After this many tokens with nothing forced the next pass does not wait for the token. If some are
# forced after all, that costs a pass, about as much as this many steps without a wait save.
_UNFORCED = 8
MOST_DRAFTED = 32  # tokens in one pass, forced ones included


class Spoilt(RuntimeError):
    """The device failed under somebody else: tokens that were read since may be garbage."""


class LayersState(Enum):
    """The kind and state of a batch's layers."""

    ALONE = "the model's own kind"
    TOGETHER = "its batched forms"
    LOST = "given up in part when another answer joined or one left"


class Batch:
    """Slots and their layers: alone they are the model's own kind, together its batched forms."""

    def __init__(
        self, model: nn.Module, slot: Slot, layers: list[Any], drafts: DraftProof | None = None
    ) -> None:
        self._model = model
        self._drafts = drafts
        self.slots = [slot]
        self._layers = layers
        self.state = LayersState.ALONE
        self._since = device.failures()
        self._read: list[int] | None = None  # the tokens of this step, once they are known
        self._tokens = mx.array([slot.last])
        # What the last step ran and kept of several tokens, and the layers' marks before it.
        self._ran: tuple[Any, list[int]] | None = None

    def takes(self, layers: Sequence[Any]) -> bool:
        """True if another answer with such layers can join."""
        return can_batch(layers) and (self.state is LayersState.TOGETHER or can_batch(self._layers))

    def join(self, slot: Slot, layers: list[Any], form: BatchForm) -> None:
        """Join another answer to these; its list of layers is emptied."""
        before, self.state = self.state, LayersState.LOST  # unless all goes well, one by one
        with device.work():
            if before is LayersState.TOGETHER:
                extend(self._layers, layers)
            else:
                self._layers = merge(self._layers, layers, form)
        self.state = LayersState.TOGETHER
        self.slots.append(slot)
        self._tokens = mx.concatenate([self._tokens, mx.array([slot.last], self._tokens.dtype)])

    def layers_of(self, slot: Slot) -> list[Any]:
        """Layers that hold `slot.path`: its own where it is alone, else a copy."""
        if self.state is LayersState.LOST:
            return []
        if self.state is LayersState.ALONE:
            return self._layers
        return extract(self._layers, self.slots.index(slot))

    def leave(self, slot: Slot, behind: int = 0) -> list[Any]:
        """Take an answer out; returns layers that hold `slot.path`.

        The tokens that the last step brought `behind` its end are cut off.
        """
        index = self.slots.index(slot)
        keep = [at for at in range(len(self.slots)) if at != index]
        try:
            with device.work():
                if behind and self._ran is not None:
                    self._cut(slot, behind, *self._ran)
                layers = self.layers_of(slot)
                for layer in self._layers if keep and self.state is not LayersState.LOST else []:
                    layer.filter(keep)
                if len(keep) == 1 and self.state is LayersState.TOGETHER:
                    self._layers, self.state = extract(self._layers, 0), LayersState.ALONE
        except Exception:
            self.state = LayersState.LOST  # those that stay begin again
            raise
        finally:
            self.slots.pop(index)
            if keep:
                self._tokens = self._tokens[mx.array(keep)]
        if not keep:
            self._layers = []
        return layers

    def _cut(self, slot: Slot, behind: int, marks: Any, kept: list[int]) -> None:
        del slot.path[-behind:]
        if rewind(self._layers, marks, len(kept), len(kept) - behind):
            forward(self._model, self._layers, mx.array([kept[:-behind]]))

    def suspend(self, slot: Slot) -> list[Any]:
        """Take out an answer that goes on later, at its `path` and `last`; returns its layers."""
        try:
            with device.work():
                value = self._values()[self.slots.index(slot)]
        except Exception:
            slot.rewind()
            raise
        try:
            chosen = slot.pending is Pending.CHOSEN
            if chosen and slot.constraint is not None and slot.error is None:
                slot.constraint.consume(value)
        except Exception as error:
            slot.error = error
        if slot.pending is not Pending.PROMPT:
            slot.owes(value)
        return self.leave(slot)

    def step(self) -> list[Step]:
        """Run every slot's next token, and choose the one that follows; returns each slot's result.

        If it raises, the layers are of no more use, and the slots can start again elsewhere at
        their `path` and `last`: all of them if it is Spoilt.
        """
        marks = [(slot.sampler.mark(), slot.likely, slot.chosen_at) for slot in self.slots]
        self._read = self._ran = None
        try:
            with device.work():
                return self._step()
        except Exception:
            for at, (slot, (mark, likely, chosen_at)) in enumerate(
                zip(self.slots, marks, strict=True)
            ):
                slot.sampler.reset(mark)
                slot.likely, slot.chosen_at = likely, chosen_at
                if self._read is None:
                    slot.rewind()
                elif slot.pending is Pending.CHOSEN:
                    # Its grammar has been told this token already; its reader has not.
                    slot.owes(self._read[at])
            raise

    def _step(self) -> list[Step]:
        if self.state is LayersState.LOST:
            raise RuntimeError("these answers' layers were lost when another one joined")
        alone = self.state is LayersState.ALONE
        values: list[int] | None = None
        runs: list[list[int]] = [[] for _ in self.slots]
        masked = any(slot.constraint is not None for slot in self.slots)
        drafts = alone and self._expects_draft(self.slots[0])
        if alone:
            self._quantise(self.slots[0])
        logits: mx.array | None = None
        if not drafts and not (alone and self._expects_run(self.slots[0])):
            logits = self._pass(self._tokens[:, None], masked=masked)
        if masked or drafts:
            values = self._values()
        if masked and values is not None:
            pairs = zip(self.slots, values, strict=True)
            runs = [self._consume(slot, value, alone=alone) for slot, value in pairs]
        if drafts and values is not None:
            step = self._speculated(self.slots[0], [values[0], *runs[0]])
            if step is not None:
                return [step]
        if logits is None:
            assert values is not None
            logits = self._run([values[0], *runs[0]], 1, masked=masked)
        elif alone and runs[0]:
            logits = self._run(runs[0], 0, masked=masked)
        before = [slot.likely for slot in self.slots]
        for slot in self.slots:
            slot.chosen_at = slot.sampler.mark(), slot.likely
        following = self._chosen(logits)
        mx.async_eval(following, *_asked(self.slots))  # type: ignore[no-untyped-call]
        values = self._values() if values is None else values
        self._tokens = following
        return [
            self._told(slot, [value, *run], [likely, *(None for _ in run)])
            for slot, value, run, likely in zip(self.slots, values, runs, before, strict=True)
        ]

    def _run(self, tokens: list[int], least: int, *, masked: bool) -> mx.array:
        """A pass over known tokens, after `least` or more of which the answer may end."""
        if len(tokens) > least and can_rewind(self._layers):
            self._ran = marks_of(self._layers, least=least), tokens
        return self._pass(mx.array([tokens]), masked=masked)

    def _pass(self, tokens: mx.array, *, masked: bool) -> mx.array:
        """Logits behind tokens, already on their way while a mask is made."""
        logits = forward(self._model, self._layers, tokens)
        if masked:
            mx.async_eval(logits)  # type: ignore[no-untyped-call]
        return logits

    def _values(self) -> list[int]:
        """The tokens of this step."""
        self._read = self._known(self._tokens)
        return self._read

    def _known(self, tokens: mx.array) -> list[int]:
        """Tokens that were chosen; Spoilt if the device failed before they were read."""
        read = cast("list[int]", tokens.tolist())
        if device.failures() != self._since:
            raise Spoilt("the device failed meanwhile, so these answers choose their tokens again")
        return read

    @staticmethod
    def _expects_run(slot: Slot) -> bool:
        """True if this step's token is worth waiting for: a grammar may force what follows it."""
        forces = slot.constraint is not None and slot.logprobs is None
        return forces and slot.unforced < _UNFORCED

    def _expects_draft(self, slot: Slot) -> bool:
        """True if this step's token is worth waiting for: what follows it may be known already."""
        if self._drafts is None or slot.drafter is None or slot.error is not None:
            return False
        return slot.drafter.expects(slot.path)

    def _speculated(self, slot: Slot, known: list[int]) -> Step | None:
        """Run a draft behind the known tokens; None if there is none."""
        assert slot.drafter is not None
        if slot.error is not None:
            return None
        most = slot.left - len(known) + (slot.pending is Pending.PROMPT)
        most = min(MOST_DRAFTED, self._room(slot, len(known) - 1 + most) - len(known) + 1)
        if most <= 0:
            return None
        path = slot.path + array("I", known[:-1]) if len(known) > 1 else slot.path
        draft = slot.drafter.propose(path, known[-1], most)
        if not draft or self._drafts is None:
            return None
        if self._drafts.why_not:
            slot.drafter = None  # no token of this model is worth waiting for
            return None
        plan = planned(draft, slot.constraint, runs=slot.logprobs is None, most=most)
        if not plan.guesses:
            return None
        # If this fails, `known[0]` is told again, and the run behind it is forced again.
        taken_back = len(plan.guesses) + len(known) - 1
        try:
            ran = dispatch(self._model, self._layers, known, plan, slot)
            mx.async_eval(ran.tokens, *ran.arrays())  # type: ignore[no-untyped-call]
            values = self._known(ran.tokens)
            agreed = settle(self._model, self._layers, ran, values, slot.sampler)
            taken_back = len(plan.guesses) - len(agreed.tokens)
        finally:
            if slot.constraint is not None:
                slot.constraint.go_back(taken_back)
        self._ran = ran.marks, [*known, *agreed.tokens]
        return self._agreed(slot, plan, known, agreed)

    def _agreed(self, slot: Slot, plan: DraftPlan, known: list[int], agreed: Agreed) -> Step:
        """The result of a draft; the batch goes on behind it."""
        assert slot.drafter is not None
        right = len(agreed.tokens)
        offered = sum(not guess.forced for guess in plan.guesses)
        accepted = sum(not guess.forced for guess in plan.guesses[:right])
        slot.drafter.judge(offered, accepted)
        slot.drafted += len(plan.guesses)
        slot.accepted += right
        likely = [slot.likely, *(None for _ in known[1:]), *agreed.likely]
        slot.chosen_at = agreed.choice.before, likely[-1]
        slot.likely = agreed.choice.likely
        self._tokens = agreed.choice.token
        return self._told(slot, [*known, *agreed.tokens], likely)

    def _consume(self, slot: Slot, value: int, *, alone: bool) -> list[int]:
        """Tell a slot's grammar its token; returns those that must follow, if they may run."""
        constraint = slot.constraint
        if constraint is None or slot.error is not None:
            return []
        try:
            if slot.pending is Pending.CHOSEN:
                constraint.consume(value)
            if not alone or slot.logprobs is not None:
                return []
            new = 0 if slot.pending is Pending.PROMPT else 1
            run = constraint.forced()[: max(0, slot.left - new)]
            run = run[: self._room(slot, len(run))]
            for token in run:
                constraint.consume(token)
            slot.sampler.follow(run)
            slot.unforced = 0 if run else slot.unforced + 1
            return run
        except Exception as error:
            slot.error = error
            return []

    @staticmethod
    def _room(slot: Slot, count: int) -> int:
        """At most `count` tokens, up to the place where rows are quantised, which no run passes."""
        if slot.kv is None or len(slot.path) >= slot.kv.start:
            return count
        return min(count, slot.kv.start - len(slot.path) - 1)

    def _quantise(self, slot: Slot) -> None:
        if slot.kv is not None and len(slot.path) == slot.kv.start:
            quantise(self._layers, slot.kv)

    def _chosen(self, logits: mx.array) -> mx.array:
        """Each slot's next token; the likeliest are found at once for all slots that take them."""
        plain = [slot.constraint is None and slot.sampler.takes_likeliest for slot in self.slots]
        likeliest = mx.argmax(logits, axis=-1).astype(mx.int32) if sum(plain) > 1 else None
        tokens = []
        for at, slot in enumerate(self.slots):
            taken = likeliest[at : at + 1] if likeliest is not None and plain[at] else None
            tokens.append(self._choose(slot, logits[at : at + 1], taken))
        return likeliest if likeliest is not None and all(plain) else mx.concatenate(tokens)

    def _choose(self, slot: Slot, logits: mx.array, taken: mx.array | None = None) -> mx.array:
        """A slot's next token, [1]; one that can't choose gets any, and an error."""
        try:
            if slot.error is None:
                token = taken
                if token is None:
                    held = logits if slot.constraint is None else slot.constraint.mask(logits)
                    token = slot.sampler.choose(held)
                if slot.logprobs is not None:
                    slot.likely = Likely.of(logits, token, slot.logprobs)
                return token
        except Exception as error:
            slot.error = error
        return mx.zeros((1,), mx.int32)

    @staticmethod
    def _told(slot: Slot, fed: list[int], likely: list[Likely | None]) -> Step:
        slot.path.extend(fed)
        new = int(slot.pending is Pending.PROMPT)  # the first one is the prompt's
        slot.last, slot.pending = None, Pending.CHOSEN
        slot.left -= len(fed) - new
        return Step(fed[new:], likely[new:], slot.error)


def _asked(slots: Sequence[Slot]) -> list[mx.array]:
    return [part for slot in slots if slot.likely is not None for part in slot.likely.arrays()]
