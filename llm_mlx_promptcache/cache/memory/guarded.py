"""Guarded: the default policy, and two that may lead in its place while they save more; no MLX.

All of them play every request in a shadow of the cache's size. To follow the one that did better
of late is never much worse than any of them, whatever is asked for (Fiat et al., J. Algorithms '91,
for paging; ARC and LeCaR too watch what was evicted too early, with one list a policy).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, Final

from .leaf_order import GHOSTS_PER_ENTRY
from .policies import Entry, Heads, PastUse, Policy, Recency
from .shadow import Shadow

_UNKNOWN: Final = 1 << 62  # bytes: until something is evicted shadows have that much room
LOOKS: Final = 8  # while as many bytes are evicted as are held
REMEMBERED: Final = 0.5 ** (1 / (16 * LOOKS))  # at each: half is forgotten after sixteen times that
# How far a policy must be ahead to lead, and behind to follow again, in standard deviations of what
# chance would do: a change of sides that is chance costs, and so does waiting.
SURE: Final = 1.0


class Challenger:
    """A policy in shadow, and how many more tokens than the default's shadow it found."""

    def __init__(self, policy: Policy, shadow: Shadow) -> None:
        self.policy: Final = policy
        self.shadow: Final = shadow
        self.leads = False
        self.ahead = 0.0  # of all requests but this one, the older ones less and less
        self._spread = 0.0  # the same, each squared
        self._request = 0

    def count(self, tokens: int) -> None:
        """So many more tokens were found, or fewer."""
        self._request += tokens

    def end_request(self) -> None:
        """Count the differences of one request as one."""
        self.ahead += self._request
        self._spread += self._request**2
        self._request = 0

    def look(self) -> None:
        """Lead, or follow again, once that is hardly chance any more."""
        self.ahead *= REMEMBERED
        self._spread *= REMEMBERED
        chance = SURE * math.sqrt(self._spread)
        self.leads = self.ahead > (-chance if self.leads else chance)


class Guarded(Recency):
    """`Recency`; `PastUse`, or plain LRU, for as long as that would have saved more tokens."""

    def __init__(self) -> None:
        self.begin(())

    def begin(self, tiers: Sequence[str]) -> None:
        """Nothing is known of what an empty order will be asked."""
        self._shadow = Shadow(tiers, Recency())
        self._challengers = [
            Challenger(policy, Shadow(tiers, policy, ghosts)) for policy, ghosts in self._others()
        ]
        self._shadows = [self._shadow, *(one.shadow for one in self._challengers)]
        self._room = _UNKNOWN  # bytes that were left after the last eviction
        self._evicted = 0  # bytes, since the last look
        self._now = 0

    def _others(self) -> list[tuple[Policy, int]]:
        """The policies that may lead, and the ghosts for each entry of their shadows."""
        self._history = PastUse()
        return [(self._history, GHOSTS_PER_ENTRY), (Policy(), 0)]

    @property
    def bias(self) -> float:
        """The factor that history gives to spans that came back, as its shadow has learned it."""
        return self._history.bias

    @property
    def leading(self) -> Policy | None:
        """The policy that chooses in place of this one."""
        leading = [one for one in self._challengers if one.leads]
        return max(leading, key=lambda one: one.ahead).policy if leading else None

    def choose(self, heads: Heads, now: int, counts: Sequence[int]) -> Hashable:
        """As the policy that leads does."""
        leading = self.leading
        choose = super().choose if leading is None else leading.choose
        return choose(heads, now, counts)

    def stored(self, entry: Entry[Any]) -> None:
        """A shadow may have had what was missing here."""
        self._ask(entry)

    def found(self, entry: Entry[Any]) -> None:
        """A shadow may have lost it."""
        self._ask(entry)

    def passed(self, entry: Entry[Any]) -> None:
        """It is as recent in all shadows."""
        for shadow in self._shadows:
            shadow.touch(entry)

    def parted(self, entry: Entry[Any], upper: Entry[Any]) -> None:
        """It parts in all shadows."""
        for shadow in self._shadows:
            shadow.split(entry, upper)

    def changed(self, entry: Entry[Any]) -> None:
        """It is as large, and as well held, in all shadows."""
        for shadow in self._shadows:
            shadow.follow(entry)

    def removed(self, entry: Entry[Any]) -> None:
        """No policy would have kept it."""
        for shadow in self._shadows:
            shadow.remove(entry)

    def evicted(self, entry: Entry[Any], now: int, nbytes: int) -> None:
        """The shadows are to hold no more than this cache does."""
        self._room = nbytes
        self._trim(now)
        self._evicted += entry.nbytes
        if LOOKS * self._evicted > nbytes:
            self._evicted = 0
            for one in self._challengers:
                one.look()

    def _ask(self, entry: Entry[Any]) -> None:
        if entry.last_used != self._now:
            self._now = entry.last_used
            for one in self._challengers:
                one.end_request()
            self._trim(self._now)  # the last one may have evicted nothing here
        found = self._shadow.ask(entry)
        for one in self._challengers:
            one.count((one.shadow.ask(entry) - found) * entry.tokens)

    def _trim(self, now: int) -> None:
        for shadow in self._shadows:
            shadow.trim(now, self._room)
