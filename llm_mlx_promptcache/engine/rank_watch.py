"""RankWatch: how long the others say nothing, and how long a rank's own step takes. No MLX here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from .group import Deadlines


class Overdue(NamedTuple):
    """The wait that is too long, and its limit: for `peer`, or in the own step where it is None."""

    peer: int | None
    seconds: float


class RankWatch:
    """The waits of one rank, by its deadlines' clock; the thread of its line looks at them."""

    def __init__(self, peers: Iterable[int], deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._silences = dict.fromkeys(peers, 0.0)  # in seconds, of this process's own time
        self._may_be_silent = deadlines.silence
        self._looked = deadlines.clock()
        self._began: float | None = None  # the step that is watched, and how long it may take
        self._may_take = deadlines.step

    def heard(self, peer: int) -> None:
        """A word of that rank has come."""
        self._silences[peer] = 0.0

    @contextmanager
    def step(self, seconds: float | None = None) -> Iterator[None]:
        """Watch what is done inside; one inside another counts in the outer one's time."""
        if self._began is not None:
            yield
            return
        self._may_take = self._deadlines.step if seconds is None else seconds
        self._began = self._deadlines.clock()
        try:
            yield
        finally:
            self._began = None

    @contextmanager
    def silence(self, seconds: float) -> Iterator[None]:
        """Let the others say nothing for so long inside; what fails there ends the group."""
        self._may_be_silent = seconds
        yield
        self._may_be_silent = self._deadlines.silence

    def look(self) -> Overdue | None:
        """The first rank that is silent for too long, or the step that is; None where all is well.

        Where this process itself was stopped for a while, the others were not silent meanwhile.
        """
        now = self._deadlines.clock()
        passed = min(now - self._looked, 2 * self._deadlines.beat)
        self._looked = now
        for peer in self._silences:
            self._silences[peer] += passed
            if self._silences[peer] > self._may_be_silent:
                return Overdue(peer, self._may_be_silent)
        began = self._began
        if began is not None and now - began > self._may_take:
            return Overdue(None, self._may_take)
        return None
