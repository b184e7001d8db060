"""The life of a host, from serving to leaving: a state machine that is told the time."""

from __future__ import annotations

import math
from enum import Enum
from typing import NamedTuple

DRAIN_SECONDS = 8.0  # `stop` waits ten in all, and a flush follows the last answer
LOOK_SECONDS = 5.0  # between two looks at the machine, while nobody asks


class Stage(Enum):
    """The stages of a host's life."""

    SERVING = "serving"
    DRAINING = "finishing what was asked"
    CANCELLING = "cancelling what was asked"
    LEAVING = "leaving"


class Signs(NamedTuple):
    """The signs against staying while nobody asks: each True is reason enough to leave."""

    pressure: bool = False
    replaced: bool = False
    socket_gone: bool = False

    @property
    def why(self) -> str:
        """The first of them in the user's words, "" for none."""
        found = zip(self, _WHY, strict=True)
        return next((words for there, words in found if there), "")


_WHY = (
    "memory is short on this machine",
    "the package's files were replaced",
    "its socket is gone",
)


class HostStatus(NamedTuple):
    """A host's report on its life, in seconds.

    `idle` and `left` are None while it answers, `left` and `keep` if it stays forever.
    """

    stage: Stage
    busy: int
    age: float
    idle: float | None
    left: float | None
    keep: float | None


class Life:
    """The open connections, the requests among them, and the reasons that end the process.

    Times are seconds of a clock that only goes forward, so that no change of the wall clock ends
    a host or keeps one. `keep` None means forever.
    """

    def __init__(self, keep: float | None, now: float) -> None:
        self.stage = Stage.SERVING
        self.why = ""
        self._born = self._idle_since = self._stopped = now
        self._keep = keep
        self._open = 0
        self.busy = 0

    @property
    def welcomes(self) -> bool:
        """True if new clients may ask."""
        return self.stage is Stage.SERVING

    @property
    def is_idle(self) -> bool:
        """True if nobody asks, and nothing waits to be delivered."""
        return self._open == 0

    def opened(self) -> None:
        """Note a welcomed client, whose connection `closed` ends."""
        self._open += 1

    def closed(self) -> None:
        """Note that such a connection has ended, with everything delivered."""
        self._open -= 1

    def begin(self, keep: float | None) -> None:
        """Note a request; the latest one says how long to stay."""
        self.busy += 1
        self._keep = keep

    def end(self, now: float) -> None:
        """Note that such a request has ended."""
        self.busy -= 1
        self._idle_since = now

    def stop(self, now: float, why: str) -> None:
        """Take nothing new, and leave once current asks are done; called again, cancel them."""
        if self.stage is Stage.SERVING:
            self.stage, self.why, self._stopped = Stage.DRAINING, why, now
        elif self.stage is Stage.DRAINING:
            self.stage = Stage.CANCELLING

    def look(self, now: float, signs: Signs) -> Stage:
        """The stage that it is in now; `signs` count while nobody asks."""
        if self.stage is Stage.SERVING and self.is_idle:
            if now - self._idle_since >= self._stay:
                self.stop(now, "nobody asked any more")
            elif signs.why:
                self.stop(now, signs.why)
        if self.stage is Stage.DRAINING and now - self._stopped >= DRAIN_SECONDS:
            self.stage = Stage.CANCELLING
        if self.stage in (Stage.DRAINING, Stage.CANCELLING) and self.is_idle:
            self.stage = Stage.LEAVING
        return self.stage

    def pause(self, now: float) -> float | None:
        """Seconds until time alone makes another look worthwhile; None where it never does."""
        if self.stage is Stage.DRAINING:
            return max(0.0, self._stopped + DRAIN_SECONDS - now)
        if self.stage is not Stage.SERVING or not self.is_idle:
            return None
        return max(0.0, min(LOOK_SECONDS, self._idle_since + self._stay - now))

    def status(self, now: float) -> HostStatus:
        """The status that `ps` shows."""
        idle = None if self.busy else now - self._idle_since
        left = None if idle is None or self._keep is None else max(0.0, self._keep - idle)
        return HostStatus(self.stage, self.busy, now - self._born, idle, left, self._keep)

    @property
    def _stay(self) -> float:
        return math.inf if self._keep is None else self._keep
