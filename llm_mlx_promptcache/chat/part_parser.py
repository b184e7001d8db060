"""An answer's text as it comes, taken step by step, up to a limit of calls."""

from __future__ import annotations

from abc import ABC, abstractmethod

from .answer_parts import Answer, Part
from .generated import InvalidCall, ToolCall


class PartParser(ABC):
    """Takes an answer's text piece by piece, emits its parts, and returns the whole at the end.

    After `most` calls the answer is over (`full`): `spare` characters behind them are not part of
    it.
    """

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._waiting = ""  # what no step has taken yet
        self._calls: list[ToolCall] = []
        self._invalid: list[InvalidCall] = []

    @property
    @abstractmethod
    def reasons(self) -> bool:
        """True if the next text is reasoning, as far as is known."""

    @property
    def full(self) -> bool:
        """True if the answer has as many calls as are allowed."""
        return self._most is not None and len(self._calls) + len(self._invalid) >= self._most

    @property
    def spare(self) -> int:
        """The number of last characters that stand behind the last allowed call."""
        return len(self._waiting) if self.full and self._waiting.strip() else 0

    def feed(self, text: str) -> list[Part]:
        """The parts that `text` completes."""
        parts: list[Part] = []
        self._waiting += text
        while self._waiting and not self.full and self._step(parts):
            pass
        return parts

    @abstractmethod
    def finish(self, *, whole: bool) -> tuple[list[Part], Answer]:
        """The last parts, and the answer.

        `whole`: the model ended it, or its grammar could end there; False for a limit or a stop
        string.
        """

    @abstractmethod
    def _step(self, parts: list[Part]) -> bool:
        """Parse as much of the waiting text as possible; False when more text is needed first."""
