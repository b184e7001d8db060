"""One pass over a draft: each token is chosen as without it, and the draft followed as it agrees.

Every position has the logits, the random key, the window of penalties and the grammar's mask that
it would have had in a pass of its own. So no token changes (law 17); there are fewer passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..cache.layers.rewinding import marks_of, rewind
from ..models.errors import ConstraintError
from .forward import forward, forward_each
from .sampler import Likely, Sampler, SamplerMark

if TYPE_CHECKING:
    from .constraint import Allowed, Constraint
    from .slots import Slot


class Guess(NamedTuple):
    """One token of a plan; `forced` by the grammar, so no guess once it is reached, or not.

    `allowed` is what the grammar allows in its place, where it is to be chosen.
    """

    token: int
    forced: bool = False
    allowed: Allowed | None = None


class DraftPlan(NamedTuple):
    """The tokens run behind the known ones, and what may come behind them."""

    guesses: list[Guess]
    last: Allowed | None = None


class ChosenToken(NamedTuple):
    """A token [1] that was chosen, and the sampler's state before and after."""

    token: mx.array
    before: SamplerMark
    after: SamplerMark
    likely: Likely | None


class DraftPass(NamedTuple):
    """A pass on its way: the tokens run, and the choice in each place but forced ones.

    The places are counted from the first guess; the last one is behind them all.
    """

    known: list[int]
    plan: DraftPlan
    marks: Any
    choices: dict[int, ChosenToken]

    @property
    def tokens(self) -> mx.array:
        """The choices, in order."""
        return mx.concatenate([choice.token for choice in self.choices.values()])

    def arrays(self) -> list[mx.array]:
        """The other arrays that have to be evaluated."""
        likely = (choice.likely for choice in self.choices.values())
        return [part for one in likely if one is not None for part in one.arrays()]


class Agreed(NamedTuple):
    """The right part of a draft: its tokens, their alternatives, and the choice behind them."""

    tokens: list[int]
    likely: list[Likely | None]
    choice: ChosenToken


def planned(
    draft: Sequence[int], constraint: Constraint | None, *, runs: bool, most: int
) -> DraftPlan:
    """A draft as the grammar allows it, with the runs that it forces; at most `most` tokens.

    The grammar has consumed them all, and must go back by those that turn out wrong. A guess after
    which it can't go on is left out, and all after it.
    """
    if constraint is None:
        return DraftPlan([Guess(token) for token in draft[:most]])
    guesses: list[Guess] = []
    if not constraint.can_go_back:
        return DraftPlan(guesses)
    try:
        allowed = constraint.allowed()
        while len(guesses) < min(most, len(draft)) and constraint.can_go_back:
            at = len(guesses)
            if not constraint.try_consume(draft[at]):
                break
            guesses.append(Guess(draft[at], allowed=allowed))
            if runs and constraint.can_go_back:
                run = constraint.forced()[: most - len(guesses)]
                taken = takewhile(constraint.try_consume, run)
                guesses += [Guess(token, forced=True) for token in taken]
            allowed = constraint.allowed()
            if [guess.token for guess in guesses[at:]] != list(draft[at : len(guesses)]):
                break
    except ConstraintError:
        return _without_last(guesses, constraint)
    return DraftPlan(guesses, allowed)


def _without_last(guesses: list[Guess], constraint: Constraint) -> DraftPlan:
    """A plan without its last guess and the run forced by it; an empty one where there is none."""
    if not guesses:
        return DraftPlan([])  # it fails without any guess too: that step reports it
    at = max(at for at, guess in enumerate(guesses) if not guess.forced)
    constraint.go_back(len(guesses) - at)
    return DraftPlan(guesses[:at], guesses[at].allowed)


def dispatch(
    model: nn.Module, layers: Sequence[Any], known: list[int], plan: DraftPlan, slot: Slot
) -> DraftPass:
    """Run the known tokens and a plan, and choose in every place; waits for nothing."""
    marks = marks_of(layers)
    tokens = [*known, *(guess.token for guess in plan.guesses)]
    logits = forward_each(model, layers, tokens)[len(known) - 1 :]
    choices = {}
    for at, guess in enumerate([*plan.guesses, None]):
        if guess is not None and guess.forced:
            slot.sampler.follow([guess.token])
            continue
        allowed = plan.last if guess is None else guess.allowed
        choices[at] = _choice(slot, logits[at : at + 1], allowed)
    return DraftPass(known, plan, marks, choices)


def settle(
    model: nn.Module, layers: Sequence[Any], ran: DraftPass, values: Sequence[int], sampler: Sampler
) -> Agreed:
    """Follow the draft as far as the choices (`values`) agree, and take back the rest."""
    value_at = dict(zip(ran.choices, values, strict=True))
    guesses = ran.plan.guesses
    wrong = (at for at, guess in enumerate(guesses) if value_at.get(at, guess.token) != guess.token)
    right = next(wrong, len(guesses))
    choice = ran.choices[right]
    sampler.reset(choice.after)
    accepted = [guess.token for guess in guesses[:right]]
    kept = [*ran.known, *accepted]
    if rewind(layers, ran.marks, len(ran.known) + len(guesses), len(kept)):
        forward(model, layers, mx.array([kept]))
    places = (ran.choices.get(at) for at in range(right))
    likely = [None if place is None else place.likely for place in places]
    return Agreed(accepted, likely, choice)


def _choice(slot: Slot, logits: mx.array, allowed: Allowed | None) -> ChosenToken:
    before = slot.sampler.mark()
    held = logits if allowed is None else allowed.applied(logits)
    token = slot.sampler.choose(held)
    likely = None if slot.logprobs is None else Likely.of(logits, token, slot.logprobs)
    return ChosenToken(token, before, slot.sampler.mark(), likely)
