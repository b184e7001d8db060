"""Turns: the order in which parties get the model, so that nobody waits for one request.

Start-time fair queueing (P. Goyal, H. Vin, H. Cheng, 1996) over three parties, counted in seconds.
"""

from __future__ import annotations

from collections.abc import Set
from enum import Enum


class Party(Enum):
    """The parties that take turns: all answers, a step each; short prompts; long prompts."""

    ANSWERS = "answers"
    SHORT = "short prompts"
    LONG = "long prompts"


# Seconds that a party may be ahead of the others when it comes: a short prompt and the first words
# of its answer need not wait for a long prompt, and what they took is made up for afterwards.
_CREDIT = {Party.SHORT: 1.0, Party.ANSWERS: 0.5, Party.LONG: 0.0}
# With all three there, answers and long prompts get a little over a third of the time each.
_PRICE = {Party.SHORT: 1.25, Party.ANSWERS: 1.0, Party.LONG: 1.0}


class Turns:
    """A tag for each party: the seconds that it had, on one scale; the least goes next.

    A party that arrives starts where the others are, less its credit, so that nobody saves up turns
    while it wants none, and nobody is owed more than its credit.
    """

    def __init__(self) -> None:
        self._tags = dict.fromkeys(Party, float("-inf"))
        self._there: Set[Party] = frozenset()
        self._now = 0.0

    def next(self, there: Set[Party]) -> Party:
        """The party whose turn it is, of those that are there now."""
        for party in there - self._there:
            self._tags[party] = max(self._tags[party], self._now - _CREDIT[party])
        self._there = frozenset(there)
        chosen = min((one for one in Party if one in there), key=self._tags.__getitem__)
        self._now = max(self._now, self._tags[chosen])
        return chosen

    def spent(self, party: Party, seconds: float) -> None:
        """Count the time of a turn, or of work outside any turn."""
        self._tags[party] += seconds * _PRICE[party]
