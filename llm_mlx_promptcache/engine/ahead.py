"""Ahead: while the user reads, the beginning of the next turn is prefilled.

Templates render an answer differently once it is history: thinking is left out, calls are
rewritten, and something follows it. That much of the next prompt is known as soon as the answer is.
Nobody waits for this work: it goes a step at a time, and gives way to any request.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Generator
from dataclasses import replace
from typing import NamedTuple

import mlx.nn as nn

from ..cache import device
from ..cache.forgetting import Moment
from ..cache.layers.device_memory import trim_pool
from ..cache.trie import common_prefix
from ..chat.transcript import Transcript
from .chunks import Beside
from .events import Finished
from .intake import Intake
from .kv import KVManager
from .next_turn import goes_on_from, is_worth_a_pass, next_turns, shared_part
from .prefill import Prefill
from .preparation import Prepared
from .request import GenerationRequest
from .sequence import Sequence

_log = logging.getLogger(__name__)

# Work ahead covers the latest answers, this many: as many users may read at once.
_MOST_ANSWERS = 8
# The budget of one answer; the rest of a longer change is left to its turn.
_MOST_TOKENS = 8192


class Answered(NamedTuple):
    """An answer being read: its request, the tokens in its layers, and when these began."""

    prepared: Prepared
    finished: Finished
    path: array[int]
    since: Moment


class WorkAhead:
    """The next turns of one model's conversations; used on the engine's thread only."""

    def __init__(self, model: nn.Module, intake: Intake, kv: KVManager, prefill: Prefill) -> None:
        self._model = model
        self._intake = intake
        self._kv = kv
        self._prefill = prefill
        self._answered: list[Answered] = []
        self._under_way: Generator[None] | None = None
        self._failed = False
        # True once work has begun since the last request.
        self.begun = False

    @property
    def left(self) -> bool:
        """True if there is anything to do."""
        return self._under_way is not None or bool(self._answered)

    def note(self, sequence: Sequence, finished: Finished) -> None:
        """Note an answer that has ended and that the user may go on from."""
        prepared, handle = sequence.prepared, sequence.handle
        if self._failed or prepared.request.warm or not self._kv.keeps(prepared):
            return
        assert handle is not None
        self._answered.append(Answered(prepared, finished, sequence.path, handle.since))
        del self._answered[:-_MOST_ANSWERS]

    def step(self) -> None:
        """Go on with the latest answer: render, look up, or prefill a chunk."""
        self.begun = True
        if self._under_way is None:
            self._under_way = self._work(self._answered[-1])
        try:
            next(self._under_way)
        except StopIteration:
            self._done()
        except Exception as error:
            device.note(error)
            self._failed = True
            self.drop()
            _log.warning("no next turn is prefilled before it is asked any more: %s", error)

    def make_way(self, request: GenerationRequest) -> None:
        """Give way to a request: keep what was computed, and drop its own conversation's work."""
        self._stop()
        self._answered = [
            one for one in self._answered if not goes_on_from(request, one.prepared.request)
        ]

    def drop(self) -> None:
        """Stop all work ahead; what was computed so far is kept."""
        self._stop()
        self._answered.clear()

    def _done(self) -> None:
        self._under_way = None
        self._answered.pop()
        trim_pool()

    def _stop(self) -> None:
        self.begun = False
        if self._under_way is not None:
            self._under_way.close()
            self._under_way = None

    def _work(self, answered: Answered) -> Generator[None]:
        """The work of one answer; another request may come between its steps."""
        transcripts = []
        for request in next_turns(answered.prepared.request, answered.finished):
            try:
                transcripts.append(self._intake.transcript(request))
            except ValueError:  # a turn that can't be asked is none to prepare
                return
            yield
        if not transcripts:
            return
        beginning = shared_part(*transcripts)
        if is_worth_a_pass(beginning, answered.path) and self._may_go_on(answered, beginning):
            prepared = replace(answered.prepared, transcript=beginning, grammar=None)
            yield from self._prefilled(prepared, answered.since)

    def _may_go_on(self, answered: Answered, beginning: Transcript) -> bool:
        """True if the conversation is still in memory: others may have needed the room."""
        held = beginning.ids[: common_prefix(beginning.ids, answered.path)]
        return self._kv.is_current(answered.since) and self._kv.holds(answered.prepared, held)

    def _prefilled(self, prepared: Prepared, since: Moment) -> Generator[None]:
        """Prefill a beginning chunk by chunk; however this ends, what was computed is kept."""
        ids = prepared.transcript.ids
        handle = self._kv.lease_ahead(prepared, ids, since)
        done = cached = handle.lease.cached
        last, plan = min(len(ids) - 1, done + _MOST_TOKENS), self._prefill.plan()
        try:
            while done < last:
                self._kv.quantise(handle, done)
                yield
                if not self._kv.is_current(since):
                    return
                # As small as beside answers: a new request waits no longer than they would.
                most = min(plan.size(done, Beside.ANSWERS), last - done)
                end = self._prefill.chunk(handle, ids, done, most)
                self._kv.count_ahead(end - done)
                start, done = done, end
                self._prefill.keep(handle, ids[:done], start)
        finally:
            if done > cached:
                self._kv.release(handle, ids[:done])
            else:
                self._kv.drop(handle)
