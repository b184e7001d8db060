"""Slot: one answer that is being decoded, and the result of each of its steps."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from ..models.kv_settings import KVSettings
from .sampler import Likely, Sampler, SamplerMark

if TYPE_CHECKING:
    from .constraint import Constraint
    from .drafts import Drafter


class Step(NamedTuple):
    """The result of a step for one slot: its tokens in order, their alternatives, or its error.

    `restart`: it failed along with others, and can start again at its `path` and `last`.
    """

    tokens: list[int]
    likely: list[Likely | None] = []  # noqa: RUF012 (of each token; nobody writes to it)
    error: Exception | None = None
    restart: bool = False


class Pending(Enum):
    """The token that a slot feeds next."""

    PROMPT = "the prompt's last"
    OWED = "one that was chosen before a restart, and is still to be told"
    CHOSEN = "the one that the device chose last"


@dataclass(eq=False)
class Slot:
    """One answer in a batch; `path` holds the tokens that its layers cover.

    `last` is the token that is fed first, until the device chose another (`pending`). `left` is
    the number of tokens still wanted. `drafter` guesses tokens, where it steps alone.
    """

    path: array[int]
    last: int | None
    sampler: Sampler
    left: int
    constraint: Constraint | None = None
    kv: KVSettings | None = None
    logprobs: int | None = None
    drafter: Drafter | None = None
    drafted: int = field(default=0, init=False)  # tokens that were run on a guess
    accepted: int = field(default=0, init=False)  # the number of these that were right
    number: int = field(default=0, init=False)  # of the layers that it runs on, to other ranks
    # Tokens since the grammar last forced one, which it is asked where this steps alone.
    unforced: int = field(default=0, init=False)
    pending: Pending = field(default=Pending.PROMPT, init=False)
    likely: Likely | None = field(default=None, init=False)
    error: Exception | None = field(default=None, init=False)
    # Where sampler and `likely` stood before the last choice.
    chosen_at: tuple[SamplerMark, Likely | None] = field(init=False)

    def __post_init__(self) -> None:
        self.chosen_at = self.sampler.mark(), None

    def rewind(self) -> None:
        """Undo the last choice, which nobody has read and which may be garbage."""
        if self.pending is Pending.CHOSEN:
            self.last, self.path, self.pending = self.path[-1], self.path[:-1], Pending.PROMPT
            mark, self.likely = self.chosen_at
            self.sampler.reset(mark)

    def owes(self, token: int) -> None:
        """Feed first a token that was chosen and read, and is still to be told."""
        self.last, self.pending = token, Pending.OWED
