"""One request on its way through the engine."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Protocol

from ..cache import device
from ..cache.forgetting import Moment
from ..cache.trie import common_prefix
from ..models.errors import NothingAllowedError
from .admission import MOST_PASSED, expected
from .answers import AnswerStream, Measured
from .chunks import Beside, ChunkPlan
from .events import Event, Finished, Output
from .kv import KVHandle
from .preparation import Prepared
from .request import GenerationRequest
from .reuse import Reuse
from .sampler import Sampler
from .slots import Slot, Step
from .turns import Party

if TYPE_CHECKING:
    from .constraint import Constraint
    from .drafts import Drafter

# A prompt is short if at most this many chunks of it are left.
_SHORT = 4


class Reader(Protocol):
    """A request's reader: it gets events, an error, or None for the end, and may be gone."""

    request: GenerationRequest

    def send(self, *outputs: Output) -> None:
        """Hand over events, an error, or None for the end: together what comes together."""

    def gone(self) -> bool:
        """True if nobody listens any more."""


class Sequence:
    """A request that has been prepared: it waits, is prefilled, then answered.

    `ids` are the tokens to run before the next one is chosen; `done` of them are in the layers.
    """

    def __init__(
        self,
        reader: Reader,
        prepared: Prepared,
        answer: AnswerStream,
        constraint: Constraint | None = None,
    ) -> None:
        self.reader = reader
        self.prepared = prepared
        self.answer = answer
        self.constraint = constraint
        self.started = time.perf_counter()
        self.ids: array[int] = prepared.transcript.ids
        self.done = 0
        self.handle: KVHandle | None = None
        # When it was asked: whenever it begins, or begins again, nothing forgotten comes back.
        self.asked: Moment | None = None
        self.plan: ChunkPlan | None = None
        self.passed = 0  # later requests that were let in before it
        self.overtaken = 0  # chunks of later requests that ran before its own
        self.slot: Slot | None = None
        self.recalled = False  # True once all sources of its drafts are known
        self.behind = 0  # tokens that the last step brought behind the answer's end
        # The reuse when it first began; a restart counts nothing twice.
        self.cached = 0
        self.from_disk = 0
        self.why = ""
        self.reuse = Reuse()

    @property
    def prefilled(self) -> bool:
        """True if only the last token is left to run."""
        return self.done == len(self.ids) - 1

    @property
    def left(self) -> int:
        """The number of prompt tokens left to prefill."""
        return len(self.ids) - 1 - self.done

    @property
    def party(self) -> Party:
        """The party with which its prompt takes turns."""
        return Party.LONG if self.left > _SHORT * self.chunk() else Party.SHORT

    def chunk(self, beside: Beside = Beside.NOBODY) -> int:
        """The size of its next chunk."""
        assert self.plan is not None
        return self.plan.size(self.done, beside)

    @property
    def expected(self) -> int:
        """The number of tokens that its layers will hold soon."""
        if self.slot is None:
            return expected(len(self.ids), self.prepared.limit)
        return expected(max(len(self.ids), len(self.slot.path)), self.slot.left)

    @property
    def path(self) -> array[int]:
        """The tokens that its layers hold."""
        if self.slot is not None and self.prefilled:
            return self.slot.path
        return self.ids[: self.done]  # also of one that begins again

    def may_share(self, other: Sequence) -> bool:
        """True if rows of one may serve the other."""
        both = (self.prepared, other.prepared)
        same = both[0].namespace == both[1].namespace
        return same and all(prepared.request.use_cache for prepared in both)

    def waits_for(self, other: Sequence) -> bool:
        """True if `other`, a prompt being run, computes rows that this one needs.

        `other` then stops where both part, to share them.
        """
        if other.handle is None or not self.may_share(other):
            return False
        both = common_prefix(self.ids, other.ids)
        both = min(both, len(other.ids) - 1, len(self.ids) - 1)
        if both > other.done:
            other.handle.stops.add(both)
        return both > other.done

    def new_slot(self, stop_ids: Collection[int], drafter: Drafter | None = None) -> Slot:
        """A slot for its answer, which `stop_ids` end."""
        request = self.prepared.request
        return Slot(
            array("I"),
            self.ids[-1],
            Sampler(request.sampling, self.ids, list(stop_ids)),
            self.prepared.limit,
            self.constraint,
            request.kv,
            request.logprobs,
            drafter,
        )

    def restart(self) -> None:
        """Begin again behind the answer so far; its layers are gone."""
        if self.slot is not None and self.prefilled:
            assert self.slot.last is not None
            self.ids = self.slot.path + array("I", [self.slot.last])
        self.handle, self.done = None, 0

    def hear(self, step: Step, bytes_of: Callable[[int], bytes]) -> None:
        """Pass on one step of its answer, up to the answer's end."""
        with device.work():
            likely = [one.told(bytes_of) if one is not None else None for one in step.likely]
        if isinstance(step.error, NothingAllowedError):
            # Its last token is none of the answer's.
            raise step.error
        self.behind = len(step.tokens)
        said: list[Event] = []
        try:
            for token, one in zip(step.tokens, likely, strict=True):
                self.behind -= 1
                said.extend(self.answer.take(token, one))
                if self.answer.ended:
                    break
        finally:  # also what came before a token that can't be told
            if said:
                self.reader.send(*said)

    def finish(self, load: float, fingerprint: str, peak_bytes: int) -> Finished:
        """Report the end of its answer, which had to wait `load` seconds for the model."""
        slot = self.slot
        measured = Measured(
            self.started,
            load,
            self.cached,
            self.why,
            fingerprint,
            peak_bytes,
            self.from_disk,
            self.reuse,
            drafted=slot.drafted if slot is not None else 0,
            # Guesses behind a stop string were right, and are no part of the answer.
            accepted=slot.accepted - min(self.behind, slot.accepted) if slot is not None else 0,
        )
        whole = self.constraint is None or self.constraint.complete
        for event in self.answer.finish(measured, whole=whole):
            self.reader.send(event)
        assert isinstance(event, Finished)
        return event


def next_short(sequences: Iterable[Sequence]) -> Sequence:
    """The short prompt that runs next: the shortest, unless one has been overtaken too often."""
    return min(
        sequences,
        key=lambda one: (0, one.started) if one.overtaken >= MOST_PASSED else (1, one.left),
    )


def overtake(sequences: Iterable[Sequence], chosen: Sequence) -> None:
    """Count that a chunk of one prompt runs before those of others that came before it."""
    for one in sequences:
        one.overtaken += one.started < chosen.started
