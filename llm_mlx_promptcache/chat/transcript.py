"""A conversation as the model reads it: its exact token ids, and where its messages end."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from .generated import nothing
from .mends import Mend

Tier = Literal["system", "user", "assistant"]


class Boundary(NamedTuple):
    """A place where a message ends: the number of tokens before it, and its tier."""

    position: int
    tier: Tier


class Transcript(NamedTuple):
    """A conversation as the model reads it; `replayed` counts the answers kept by their ids.

    `rendered` must be kept in the answer's record (`Generated.of(..., rendered=)`), so that the
    next turn is rendered with the same date and template arguments. `mends` names the parts that
    the template has no place for, and their new places. The last `begun` ids are those of an answer
    that goes on where the prompt ends. `ends` has for each message the number of tokens up to its
    end; that of the message before if nothing shows it. The first `stays` ids stand in later
    prompts too.
    """

    ids: array[int]
    boundaries: tuple[Boundary, ...]
    replayed: int
    rendered: Mapping[str, Any] = nothing()
    mends: frozenset[Mend] = frozenset()
    begun: int = 0
    ends: tuple[int, ...] = ()
    stays: int = 0

    def message_at(self, position: int) -> int:
        """The index of the message that holds token `position`; the last one's behind it."""
        before = (0, *self.ends)
        for index, end in enumerate(self.ends):
            # Of messages whose ends are unknown the first one begins where the last known one ends.
            if end > position or (end == before[index] == position and index):
                return index
        return max(0, len(self.ends) - 1)

    def __repr__(self) -> str:
        # Tokens are text to anyone with the tokenizer, so they are not shown.
        return f"Transcript({len(self.ids)} ids, {self.boundaries}, replayed={self.replayed})"
