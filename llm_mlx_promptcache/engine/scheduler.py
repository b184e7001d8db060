"""A loaded model at work: requests are admitted, prefilled in turns, and answered together.

Each prompt is prefilled alone, in layers of its own, a chunk at a time; prompts and answers take
turns, counted in seconds. A request for a prefix that another is just computing waits for it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import mlx.core as mx

from ..cache import device
from ..cache.identity import Identity
from ..cache.insertion import Rows
from ..cache.layers.device_memory import POOL_OF_STEPS, trim_pool
from ..cache.trie import common_prefix
from ..models.layers import weights_in
from ..models.loading import LoadedModel
from ..models.needs import needs_of
from .admission import MOST_PASSED, Admission
from .ahead import WorkAhead
from .answers import looked
from .batch_layers import BatchForm
from .chunks import Beside
from .decode import Decode
from .events import Progress
from .intake import Intake
from .kv import KVManager
from .parts import LoadReport, Parts
from .prefill import Prefill
from .sequence import Reader, Sequence
from .slots import Step
from .turns import Party, Turns
from .wired import WIRED


class Scheduler:
    """One loaded model and the requests that it answers; used on the engine's thread only.

    `clock` tells seconds.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        identity: Identity,
        parts: Parts,
        report: LoadReport,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._fingerprint = identity.model
        self._load_seconds = report.seconds
        self._intake = Intake(loaded, identity)
        self._kv = parts.kv
        self._drafting = parts.drafting
        self._admission = Admission(parts.memory, needs_of(loaded.model))
        self._prefill = Prefill(loaded.model, parts.kv, parts.planner, clock)
        self._decode = Decode(parts, self._intake.tokenizer.stop_ids)
        self.ahead: WorkAhead | None = None
        if report.ahead:
            self.ahead = WorkAhead(loaded.model, self._intake, self._kv, self._prefill)
        self._turns = Turns()
        self._clock = clock
        self._waiting: list[Sequence] = []
        self._prefilling: list[Sequence] = []
        self._weights = weights_in(loaded.model)
        self.rested = True
        self.packing = report.packing

    @property
    def busy(self) -> bool:
        """True if anything is left to do."""
        return bool(self._waiting or self._prefilling or self._decode)

    @property
    def kv(self) -> KVManager:
        """Leases and what is kept, for work between two steps."""
        return self._kv

    @property
    def batch_form(self) -> BatchForm:
        """The way this model's answers go together; measured with the model if not known yet."""
        return self._decode.form

    def add(self, reader: Reader) -> None:
        """Take a request in; its faults are told to its reader."""
        if self.packing is not None:
            self.packing.pause()
        looks = reader.request.look
        if self.ahead is not None and not looks:
            self.ahead.make_way(reader.request)
        try:
            sequence = self._intake.sequence(reader)
            if looks:
                lease = self._kv.look(sequence.prepared, sequence.ids)
                undrafted = self._drafting.undrafted
                reader.send(looked(sequence.prepared, lease, self._fingerprint, undrafted))
                reader.send(None)
                return
            prepared = sequence.prepared
            self._admission.check(len(sequence.ids), prepared.limit, prepared.request.kv)
        except BaseException as error:
            reader.send(error)
            reader.send(None)
            return
        sequence.asked = self._kv.asked(prepared)
        if not self.busy:
            self.rested = False
            WIRED.hold(id(self), self._weights)
            mx.reset_peak_memory()
        self._waiting.append(sequence)

    def step(self) -> None:
        """One turn: a step of all answers, or a chunk's worth of prompts."""
        self._recover()
        for sequence in [*self._waiting, *self._active()]:
            if sequence.reader.gone():
                self._end(sequence)
        self._admit()
        if there := self._parties():
            self._take_turn(self._turns.next(there))
        self._preempt()
        if not self.busy:
            device.settle()

    def rest(self) -> None:
        """After a while without requests: free the memory of answers, but not the weights."""
        self.rested = True
        self._kv.rest()
        try:
            WIRED.release(id(self))
        finally:
            trim_pool()

    def fail(self, error: BaseException) -> None:
        """Tell all readers that nothing more will come, and keep nothing of their requests."""
        device.note(error)
        for sequence in [*self._waiting, *self._active()]:
            try:
                self._end(sequence, error)
            except Exception:
                sequence.reader.send(error)
                sequence.reader.send(None)
        for held in (self._waiting, self._prefilling, self._decode):
            held.clear()
        trim_pool()

    def settle(self, *, last: bool = False) -> None:
        """Write the rest of these answers to the disk; waits if it is the `last` time."""
        if last and self.ahead is not None:
            self.ahead.drop()
        try:
            self._kv.flush(last=last)
        finally:
            if last:
                self.rest()
            else:
                trim_pool()

    def unload(self) -> None:
        """Drop the model's weights; this object answers nothing any more."""
        del self._intake, self._kv, self._drafting, self._prefill, self._decode, self.ahead
        gc.collect()  # models hold themselves, through their layers
        trim_pool()

    # Getting in.

    def _admit(self) -> None:
        """Begin every request that there is room for, in the order in which they came."""
        passed: list[Sequence] = []
        for sequence in list(self._waiting):
            active = self._active()
            if not self._admission.admits(sequence.expected, [other.expected for other in active]):
                if sequence.passed >= MOST_PASSED:
                    return
                passed.append(sequence)
                continue
            if any(sequence.waits_for(other) for other in self._prefilling):
                continue
            self._waiting.remove(sequence)
            for other in passed:
                other.passed += 1
            try:
                for other in active:
                    self._share(other, sequence)
                self._begin(sequence, Rows.COPY if active or self._waiting else Rows.GIVE)
            except BaseException as error:
                self._end(sequence, error)

    def _preempt(self) -> None:
        """If answers outgrew the limit, make the newest wait again; its rows are kept."""
        while len(active := self._active()) > 1:
            prompts = sum(sequence.done for sequence in self._prefilling)
            if self._admission.holds(prompts + self._decode.tokens):
                return
            self._suspend(max(active, key=lambda sequence: sequence.started))

    def _suspend(self, sequence: Sequence) -> None:
        assert sequence.handle is not None
        if sequence in self._prefilling:
            self._prefilling.remove(sequence)
        else:
            self._decode.suspend(sequence)
        self._kv.release(sequence.handle, sequence.path)
        sequence.restart()
        self._waiting.insert(0, sequence)

    def _active(self) -> list[Sequence]:
        return [*self._prefilling, *self._decode]

    def _share(self, other: Sequence, sequence: Sequence) -> None:
        """Copy rows that only another request's layers hold to the cache, if they are needed."""
        handle = other.handle
        if handle is None or not sequence.may_share(other):
            return
        if common_prefix(other.path, sequence.ids) <= handle.shared:
            return
        if other in self._decode:
            self._decode.share(other)
        else:
            self._kv.insert(handle, other.path, Rows.COPY)

    def _begin(self, sequence: Sequence, rows: Rows) -> None:
        self._prefill.begin(sequence, rows)
        self._prefilling.append(sequence)
        self._progress(sequence)

    # Turns.

    def _parties(self) -> set[Party]:
        """The parties that want the model now."""
        answers = {Party.ANSWERS} if self._decode else set()
        return answers | {sequence.party for sequence in self._prefilling}

    def _take_turn(self, party: Party) -> None:
        started = self._clock()
        if party is Party.ANSWERS:
            for sequence, step in self._decode.step():
                self._hear(sequence, step)
            trim_pool(POOL_OF_STEPS)
        else:
            if self._decode:  # their next step is on its way already, and theirs to pay
                if not self._settle_answers():
                    return
                ended = self._clock()
                self._turns.spent(Party.ANSWERS, ended - started)
                started = ended
            self._run_prompts(party)
        self._turns.spent(party, self._clock() - started)

    def _settle_answers(self) -> bool:
        """Wait for the answers' step; if the device failed meanwhile, they get the error."""
        try:
            device.settle()
        except Exception as error:
            for sequence in self._decode:
                self._end(sequence, error)
            self._recover()
            return False
        return True

    # Prompts.

    def _run_prompts(self, party: Party) -> None:
        beside = Beside.ANSWERS if self._decode else Beside.NOBODY
        for sequence, error in self._prefill.turn(self._prefilling, party, beside):
            try:
                if error is not None:
                    raise error
                assert sequence.handle is not None
                self._admission.measure(sequence.handle.layers, sequence.done)
                self._progress(sequence)
            except BaseException as failure:
                self._end(sequence, failure)
                self._recover()

    def _progress(self, sequence: Sequence) -> None:
        """Report a prompt's progress; if it is done, its answer begins."""
        assert sequence.handle is not None
        self._kv.quantise(sequence.handle, sequence.done)
        if sequence.slot is None:
            sequence.reader.send(Progress(sequence.done, len(sequence.ids), sequence.cached))
        if sequence.done < len(sequence.ids) - 1:
            return
        self._prefilling.remove(sequence)
        path = sequence.ids[: sequence.done]
        if sequence.prepared.request.warm:
            self._kv.insert(sequence.handle, path, Rows.COPY)
            if sequence.prepared.request.pin:
                self._kv.pin(sequence.handle, path)
            self._finish(sequence)
            return
        others = bool(self._waiting or self._active())
        self._kv.insert_prompt(sequence.handle, path, others=others)
        self._decode.begin(sequence, path)

    def _recover(self) -> None:
        """After a failure of the device, make all that held layers begin again.

        MLX tells neither whose work failed nor which arrays were not written. The request that got
        the error has ended, so this comes to an end.
        """
        active = self._active()
        if all(sequence.handle is None or sequence.handle.whole for sequence in active):
            return
        self._decode.give_up()
        self._prefilling.clear()
        for sequence in active:
            sequence.restart()
        self._waiting[:0] = active

    # Answers.

    def _hear(self, sequence: Sequence, step: Step) -> None:
        """Pass on one step of an answer, up to its end."""
        if step.restart:
            self._decode.lose(sequence)
            self._waiting.insert(0, sequence)
            sequence.restart()
            return
        try:
            sequence.hear(step, self._intake.tokenizer.text.bytes_of)
            if sequence.answer.ended:
                self._finish(sequence)
            elif step.error is not None:
                raise step.error
            elif not sequence.recalled:
                self._decode.recall(sequence)
        except BaseException as error:
            self._end(sequence, error)

    def _finish(self, sequence: Sequence) -> None:
        """Report the end of an answer, and keep its rows."""
        load, self._load_seconds = self._load_seconds, 0.0
        finished = sequence.finish(load, self._fingerprint, mx.get_peak_memory())
        self._end(sequence)
        if self.ahead is not None:
            self.ahead.note(sequence, finished)

    def _end(self, sequence: Sequence, error: BaseException | None = None) -> None:
        """End a request however it went: its rows are kept, and its reader is told."""
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        if sequence in self._prefilling:
            self._prefilling.remove(sequence)
        if sequence.handle is not None:
            if sequence in self._decode:
                self._decode.leave(sequence)
            self._kv.release(sequence.handle, sequence.path)
            trim_pool()
        if error is not None:
            sequence.reader.send(error)
        sequence.reader.send(None)
