"""A loaded model at work: requests are admitted, prefilled in turns, and answered together.

Each prompt is prefilled alone, in layers of its own, a chunk at a time; prompts and answers take
turns, counted in seconds. Who asks for a prefix that another is just computing waits for it.
"""

from __future__ import annotations

import gc
import time
from array import array
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import mlx.core as mx

from ..cache import device
from ..cache.identity import Identity
from ..cache.prompt_cache import PromptCache
from ..cache.trie import common_prefix
from .admission import MOST_PASSED, Admission
from .answering import Answering, Measured
from .batch_probe import BatchProof
from .batches import Batches
from .chat_tokenizer import TemplateTokenizer
from .chunks import ChunkPlanner, chunk_end
from .decoding import Row, Step
from .errors import NothingAllowedError
from .facts import model_facts
from .forward import BatchForm, prefill, wired
from .keeping import Keeper
from .loading import LoadedModel
from .preparing import Prepared, prepare
from .request import Progress
from .sampling import Chooser
from .tasks import Asker, Task, next_short
from .turns import Party, Turns

if TYPE_CHECKING:
    from llguidance import LLTokenizer

    from .constraint import Constraint


class Running:
    """One loaded model and the requests that it answers; used on the engine's thread only.

    `identity` is the model's fingerprint, `rows` that of its rows (the same, unless given),
    `load_seconds` what the first answer had to wait for, `name` what people call the model,
    `uncached` why nothing of it may be kept. `planner` sizes its chunks, `clock` tells seconds.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        identity: str,
        cache: PromptCache,
        load_seconds: float = 0.0,
        name: str = "",
        *,
        rows: str | None = None,
        uncached: str = "",
        planner: ChunkPlanner | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._loaded = loaded
        self._identity = Identity(identity, identity if rows is None else rows)
        self._load_seconds = load_seconds
        self._tokenizer = TemplateTokenizer(loaded.tokenizer)
        self._keeper = Keeper(loaded.model, cache, name, uncached, self._identity.rows)
        self._admission = Admission()
        self._planner = planner or ChunkPlanner(identity)
        self._turns = Turns()
        self._clock = clock
        self._waiting: list[Task] = []
        self._prefilling: list[Task] = []
        self._answering: dict[Row, Task] = {}
        self._proof = BatchProof(loaded.model, identity, model_facts())
        self._batches = Batches(loaded.model, self._proof)
        self._grammars: LLTokenizer | None = None
        self._wired = ExitStack()

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._waiting or self._prefilling or self._answering)

    @property
    def batch_form(self) -> BatchForm:
        """How this model's answers go together; found out with the model where nobody knows yet."""
        return self._proof.form

    def add(self, asker: Asker) -> None:
        """Take a request in; what is wrong with it is told to who asked."""
        try:
            prepared = prepare(asker.request, self._loaded, self._tokenizer, self._identity)
            answering = Answering(prepared, self._tokenizer)
            task = Task(asker, prepared, answering, self._constraint(prepared))
        except BaseException as error:
            asker.tell(error)
            asker.tell(None)
            return
        if not self.busy:
            self._wired.enter_context(wired(self._loaded.model))
            mx.reset_peak_memory()
        self._waiting.append(task)

    def step(self) -> None:
        """One turn: a step of all answers, or a chunk's worth of prompts."""
        self._recover()
        for task in [*self._waiting, *self._active()]:
            if task.asker.gone():
                self._end(task)
        self._admit()
        if there := self._parties():
            self._take_turn(self._turns.next(there))
        self._preempt()
        if not self.busy:
            self._wired.close()

    def fail(self, error: BaseException) -> None:
        """Tell everybody that nothing more will come, and keep nothing of what they hold."""
        device.note(error)
        for task in [*self._waiting, *self._active()]:
            try:
                self._end(task, error)
            except Exception:
                task.asker.tell(error)
                task.asker.tell(None)
        self._waiting, self._prefilling, self._answering = [], [], {}
        self._batches = Batches(self._loaded.model, self._proof)
        self._wired.close()

    def settle(self, last: bool = False) -> None:
        """Have the disk written what these answers left to write; wait if it is the last."""
        self._keeper.settle(last)

    def unload(self) -> None:
        """Drop the model's weights; this object answers nothing any more."""
        del self._loaded, self._keeper, self._batches, self._proof, self._tokenizer
        gc.collect()  # models hold themselves, through their layers
        mx.clear_cache()

    # Getting in.

    def _admit(self) -> None:
        """Begin what there is room for, in the order in which it came."""
        passed: list[Task] = []
        for task in list(self._waiting):
            active = self._active()
            if not self._admission.admits(task.expected, [other.expected for other in active]):
                if task.passed >= MOST_PASSED:
                    return
                passed.append(task)
                continue
            if self._awaits_another(task):
                continue
            self._waiting.remove(task)
            for other in passed:
                other.passed += 1
            try:
                for other in active:
                    self._give_back(other, task)
                self._begin(task, take=not active and not self._waiting)
            except BaseException as error:
                self._end(task, error)

    def _preempt(self) -> None:
        """Where answers outgrew the bound the newest waits again: what it has comes home."""
        while len(active := self._active()) > 1:
            prompts = sum(task.done for task in self._prefilling)
            if self._admission.holds(prompts + self._batches.tokens):
                return
            self._suspend(max(active, key=lambda task: task.started))

    def _suspend(self, task: Task) -> None:
        assert task.holding is not None
        if task in self._prefilling:
            self._prefilling.remove(task)
        elif task.row is not None:
            del self._answering[task.row]
            task.holding.layers = self._batches.suspend(task.row)
        self._keeper.bring_home(task.holding, task.path)
        task.restart()
        self._waiting.insert(0, task)

    def _active(self) -> list[Task]:
        return [*self._prefilling, *self._answering.values()]

    def _awaits_another(self, task: Task) -> bool:
        """Whether another prompt is computing what this one needs; it stops there, to share it."""
        if not task.prepared.request.use_cache:
            return False
        for other in self._prefilling:
            holding = other.holding
            if holding is None or not other.prepared.request.use_cache:
                continue
            if other.prepared.namespace != task.prepared.namespace:
                continue
            both = min(common_prefix(task.ids, other.ids), len(other.ids) - 1, len(task.ids) - 1)
            if both > other.done:
                holding.places.add(both)
                return True
        return False

    def _give_back(self, other: Task, task: Task) -> None:
        """What only another request's layers hold is copied back, where this task needs it."""
        holding = other.holding
        if holding is None or other.prepared.namespace != task.prepared.namespace:
            return
        if not (task.prepared.request.use_cache and other.prepared.request.use_cache):
            return
        if common_prefix(other.path, task.ids) <= holding.at_home:
            return
        answering = other.row if other.row in self._answering else None
        if answering is not None:
            holding.layers = self._batches.layers_of(answering)
        self._keeper.keep(holding, other.path, back=True)
        if answering is not None:
            holding.layers = []

    def _begin(self, task: Task, take: bool) -> None:
        speed = self._planner.speed(0, len(task.ids))
        task.holding = self._keeper.lease(task.prepared, task.ids, take, speed)
        task.done = task.holding.lease.cached
        if task.plan is None:
            task.cached, task.why = task.done, str(task.holding.lease.why)
            task.from_disk = task.holding.lease.from_disk
        task.plan = self._planner.begin()
        self._prefilling.append(task)
        self._progress(task)

    def _constraint(self, prepared: Prepared) -> Constraint | None:
        if prepared.grammar is None:
            return None
        from .constraint import Constraint, grammar_tokenizer

        words = self._loaded.words
        if self._grammars is None:
            self._grammars = grammar_tokenizer(self._loaded.tokenizer, words)
        return Constraint(self._grammars, prepared.grammar, words, thinking=prepared.thinking)

    # Turns.

    def _parties(self) -> set[Party]:
        """Who wants the model now."""
        answers = {Party.ANSWERS} if self._answering else set()
        return answers | {task.party for task in self._prefilling}

    def _take_turn(self, party: Party) -> None:
        started = self._clock()
        if party is Party.ANSWERS:
            for row, step in self._batches.step():
                self._hear(self._answering[row], step)
        else:
            if self._answering:  # their next step is on its way already, and theirs to pay
                if not self._settle_answers():
                    return
                ended = self._clock()
                self._turns.spent(Party.ANSWERS, ended - started)
                started = ended
            self._run_prompts(party)
        self._turns.spent(party, self._clock() - started)

    def _settle_answers(self) -> bool:
        """Wait for the answers' step; where the device failed meanwhile, theirs is the error."""
        try:
            device.settle()
        except Exception as error:
            for task in list(self._answering.values()):
                self._end(task, error)
            self._recover()
            return False
        return True

    def _run_prompts(self, party: Party) -> None:
        """A chunk of a long prompt (they alternate), or a chunk's worth of short ones.

        Short prompts that come together answer together. Chunks are smaller while others answer.
        """
        shared, share = bool(self._answering), 1.0
        while share > 0 and (tasks := [one for one in self._prefilling if one.party is party]):
            task = tasks[0] if party is Party.LONG else next_short(tasks)
            self._prefilling.remove(task)
            self._prefilling.append(task)
            most = task.chunk(shared)
            run = self._prefill(task, max(1, int(share * most)))
            share = share - run / most if party is Party.SHORT else 0

    # Prompts.

    def _prefill(self, task: Task, most: int) -> int:
        """Run the next chunk of a prompt, up to the next place that must be kept; returns its size.

        An error ends the request.
        """
        assert task.holding is not None
        holding, start, last = task.holding, task.done, len(task.ids) - 1
        try:
            end = chunk_end(start, last, holding.places, most)
            began = self._clock()
            with device.work():
                prefill(self._loaded.model, holding.layers, task.ids[start:end])
            self._planner.observe(start, end - start, self._clock() - began)
            task.done = end
            self._admission.measure(holding.layers, end)
            if end in holding.places:
                self._keeper.keep(holding, task.ids[:end])
            self._progress(task)
        except BaseException as error:
            self._end(task, error)
            self._recover()
        return task.done - start

    def _progress(self, task: Task) -> None:
        """Tell how far a prompt is; where it is through, its answer begins."""
        assert task.holding is not None
        self._keeper.quantise(task.holding, task.done)
        if task.row is None:
            task.asker.tell(Progress(task.done, len(task.ids), task.cached))
        if task.done < len(task.ids) - 1:
            return
        self._prefilling.remove(task)
        path = task.ids[: task.done]
        if task.prepared.request.warm:
            self._keeper.keep(task.holding, path, back=True)
            if task.prepared.request.pin:
                self._keeper.pin(task.holding, path)
            self._finish(task)
            return
        others = bool(self._waiting or self._active())
        self._keeper.write_behind(task.holding, path, others)
        row = task.row = task.row or self._row(task)
        row.path = path
        layers, task.holding.layers = task.holding.layers, []
        self._batches.add(row, layers)
        self._answering[row] = task

    def _row(self, task: Task) -> Row:
        request = task.prepared.request
        return Row(
            array("I"),
            task.ids[-1],
            Chooser(request.sampling, task.ids, list(self._tokenizer.stop_ids)),
            task.prepared.limit,
            task.constraint,
            request.kv,
            request.logprobs,
        )

    def _recover(self) -> None:
        """Behind a failure of the device all who held layers begin again.

        Whose work it was is not told, nor what else was not written. Who was told of it has ended,
        so there is an end to this.
        """
        active = self._active()
        if all(task.holding is None or task.holding.whole for task in active):
            return
        self._batches.give_up()
        self._prefilling, self._answering = [], {}
        for task in active:
            task.restart()
        self._waiting[:0] = active

    # Answers.

    def _hear(self, task: Task, step: Step) -> None:
        """Tell what one step brought, to the end of the answer."""
        if step.restart:
            del self._answering[task.row]  # type: ignore[arg-type]
            self._waiting.insert(0, task)
            task.restart()
            return
        likely = step.likely.told(self._tokenizer.text_of) if step.likely is not None else None
        try:
            if isinstance(step.error, NothingAllowedError):
                # Its last token is none of the answer's.
                raise step.error
            for token in step.tokens:
                for event in task.answering.take(token, likely):
                    task.asker.tell(event)
                if task.answering.ended:
                    break
            if task.answering.ended:
                self._finish(task)
            elif step.error is not None:
                raise step.error
        except BaseException as error:
            self._end(task, error)

    def _finish(self, task: Task) -> None:
        """Tell the end of an answer, and keep what it left."""
        load, self._load_seconds = self._load_seconds, 0.0
        measured = Measured(
            task.started,
            load,
            task.cached,
            task.why,
            self._identity.model,
            mx.get_peak_memory(),
            task.from_disk,
        )
        whole = task.constraint is None or task.constraint.complete
        for event in task.answering.finish(whole, measured):
            task.asker.tell(event)
        self._end(task)

    def _end(self, task: Task, error: BaseException | None = None) -> None:
        """Whatever ends a request: what it computed comes home, and who asked is told."""
        if task in self._waiting:
            self._waiting.remove(task)
        if task in self._prefilling:
            self._prefilling.remove(task)
        if task.holding is not None:
            if task.row is not None and self._answering.pop(task.row, None) is not None:
                task.holding.layers = self._batches.leave(task.row)
            self._keeper.bring_home(task.holding, task.path)
        if error is not None:
            task.asker.tell(error)
        task.asker.tell(None)
