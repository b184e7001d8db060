"""Engine: a queue of requests and the one thread that loads the model and runs it.

MLX's streams belong to the thread that made them, so model, layers and cached arrays are touched
on this thread only; callers on any thread get plain events. This file imports no MLX.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import queue
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from ..chat.messages import Message
from ..models.errors import LoadingEnded
from .errand import Errand, T
from .events import Event, Finished, Loading, Output
from .request import GenerationRequest, warming

if TYPE_CHECKING:
    from .scheduler import Scheduler

# Takes events on the engine's thread, where it must wait for nothing; returns those that it leaves.
AtOnce = Callable[[Sequence[Output]], Sequence[Output]]

_log = logging.getLogger(__name__)

# Seconds without a job before next turns are worked on: a process that ends with its answer is gone
# by then, and a quick tool has given its result.
QUIET = 1.0
# Seconds without a job before memory that is kept resident for answers goes back to the system.
IDLE = 60.0
# The engines of this process that answer somebody now.
_answering: set[Engine] = set()


class _Job:
    """A request on its way through the engine, and the channel of its events to the caller."""

    def __init__(
        self, request: GenerationRequest, deliver: Callable[[Sequence[Output]], None]
    ) -> None:
        self.request = request
        self.abandoned = threading.Event()
        self._deliver = deliver

    def send(self, *outputs: Output) -> None:
        """Hand over events, an error, or None for the end: together what comes together."""
        try:
            self._deliver(outputs)
        except RuntimeError:  # the loop that waited for it is closed
            self.abandoned.set()

    def gone(self) -> bool:
        """True if nobody listens any more."""
        return self.abandoned.is_set()


class _Unload(threading.Event):
    """A request for the model's memory; set when it was given back, or could not be.

    `dropped`: the caller waits no longer, and must not find the model gone later.
    """

    dropped = False


class ModelState(Enum):
    """The whereabouts of an engine's model."""

    UNLOADED = "not in memory"
    LOADING = "on its way"
    LOADED = "in memory"


class Engine:
    """One model and its thread, started by the first request.

    `load` runs on that thread, and is given a function that reports progress to all who wait.
    `beats` grows as long as the thread makes progress: if it stands still while somebody waits, the
    thread hangs.
    """

    def __init__(self, load: Callable[[Callable[[Loading], None]], Scheduler]) -> None:
        self._load = load
        self.beats = 0
        self._loading: Loading | None = None
        self._jobs: queue.SimpleQueue[_Job | _Unload | Errand[Any] | None] = queue.SimpleQueue()
        self._model = ModelState.UNLOADED
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._process = os.getpid()
        self._live: weakref.WeakSet[_Job] = weakref.WeakSet()

    def generate(self, request: GenerationRequest) -> Generator[Event]:
        """The events of one answer, as they come; a reader that stops early frees the engine."""
        outputs: queue.SimpleQueue[Output] = queue.SimpleQueue()

        def deliver(sent: Sequence[Output]) -> None:
            for output in sent:
                outputs.put(output)

        job = _Job(request, deliver)
        self._submit(job)
        try:
            while (event := outputs.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            job.abandoned.set()

    async def agenerate(
        self, request: GenerationRequest, at_once: AtOnce | None = None
    ) -> AsyncGenerator[Event, None]:
        """The same for an event loop, which is never blocked.

        `at_once` is given all events on the engine's thread first; the loop is not woken for those
        that it takes. What it raises ends the answer, and is raised here.
        """
        loop = asyncio.get_running_loop()
        outputs: asyncio.Queue[Output] = asyncio.Queue()

        def put(sent: Sequence[Output]) -> None:
            for output in sent:
                outputs.put_nowait(output)

        def deliver(sent: Sequence[Output]) -> None:
            if at_once is not None and not job.gone():
                try:
                    sent = at_once(sent)
                except Exception as error:
                    job.abandoned.set()
                    sent = (error,)
            if sent:
                loop.call_soon_threadsafe(put, sent)

        job = _Job(request, deliver)
        self._submit(job)
        try:
            while (event := await outputs.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            job.abandoned.set()

    @property
    def loaded(self) -> bool:
        """True if the model is in memory; a request before that waits for it."""
        return self._model is ModelState.LOADED

    def runs_on(self, thread: int | None) -> bool:
        """True if this is its thread's identifier."""
        return self._thread is not None and self._thread.ident == thread

    def unload(self, timeout: float = 30.0) -> bool:
        """Free the model's memory, unless it is answering; the next request loads it again."""
        with self._lock:
            # An engine that loads may itself wait for another one's memory.
            if self._thread is None or self._closed or self._model is ModelState.LOADING:
                return self._model is ModelState.UNLOADED
            asked = _Unload()
            self._jobs.put(asked)
        if not asked.wait(timeout):
            asked.dropped = True
        return self._model is not ModelState.LOADED

    def between_steps(self, work: Callable[[Scheduler], T]) -> T | None:
        """Have its thread do some work between two steps; None without a model.

        RuntimeError while the model is being loaded; what goes wrong in the work is raised here.
        """
        errand = Errand(work)
        with self._lock:
            if self._thread is None or self._closed:
                return None
            if self._model is ModelState.LOADING:
                raise RuntimeError("the model is just being loaded")
            self._jobs.put(errand)
        return errand.result()

    def warm(self, messages: Iterable[Message], **asked: Any) -> Finished:
        """Prefill and pin the common start of conversations that begin with these messages.

        `asked` also shapes their prompts: tools, cache_salt, thinking, template_arguments.
        """
        *_, last = self.generate(warming(messages, **asked))
        assert isinstance(last, Finished)
        return last

    def leave(self) -> bool:
        """End the thread of an engine without a model, waiting for nothing; False if it has one."""
        with self._lock:
            if self._model is not ModelState.UNLOADED:
                return False
            self._closed = True
            self._jobs.put(None)
        atexit.unregister(self._leave)
        return True

    def close(self) -> None:
        """Finish the writes promised to the disk, then end the thread for good."""
        with self._lock:
            thread, self._closed = self._thread, True
            self._jobs.put(None)
        if thread is not None:
            thread.join()
            atexit.unregister(self._leave)

    def _leave(self) -> None:
        """At the end of the process: abandon answers that nobody can read any more."""
        for job in list(self._live):
            job.abandoned.set()
        self.close()

    def _submit(self, job: _Job) -> None:
        if os.getpid() != self._process:
            raise RuntimeError(
                "this engine belongs to the process that forked this one, where its model is; use"
                " it there, or start this process anew (multiprocessing: spawn)"
            )
        with self._lock:
            if self._closed:
                raise RuntimeError("the engine is closed; make another one")
            if self._thread is None:
                # A daemon, so that nothing can hang the exit but `close`, which waits for writes.
                self._thread = threading.Thread(target=self._run, name="mlx-engine", daemon=True)
                self._thread.start()
                atexit.register(self._leave)
            self._live.add(job)
            if self._loading is not None:
                job.send(self._loading)
            self._jobs.put(job)

    def _run(self) -> None:
        scheduler: Scheduler | None = None
        closing = False
        while not closing or (scheduler is not None and scheduler.busy):
            scheduler, closing = self._turn(scheduler, closing=closing)
        if scheduler is not None:
            self._settle(scheduler, last=True)
        self._model, scheduler = ModelState.UNLOADED, None
        if "mlx.core" in sys.modules:  # where loading failed early there is nothing to leave
            from ..models.threads import leave_thread

            leave_thread()

    def _turn(self, scheduler: Scheduler | None, *, closing: bool) -> tuple[Scheduler | None, bool]:
        """Take in the jobs that have come, and do a step of the work.

        No name here holds a request then: a thread that waits for the next would keep it alive.
        """
        jobs, closing = self._arrived(closing=closing, seconds=self._patience(scheduler))
        self.beats += 1
        for job in jobs:
            if isinstance(job, _Job):
                scheduler = self._take(scheduler, job)
            elif isinstance(job, Errand):
                job.run(scheduler)
            else:
                scheduler = self._let_go(scheduler, job)
        if scheduler is not None and scheduler.busy:
            _answering.add(self)
            self._step(scheduler)
        elif not (jobs or closing) and scheduler is not None:
            self._use_quiet(scheduler)
        return scheduler, closing

    def _arrived(
        self, *, closing: bool, seconds: float | None
    ) -> tuple[list[_Job | _Unload | Errand[Any]], bool]:
        """The jobs that came meanwhile; waits `seconds` for the first, None without end."""
        jobs: list[_Job | _Unload | Errand[Any]] = []
        while not closing:
            try:
                job = self._jobs.get(timeout=0 if jobs else seconds)
            except queue.Empty:
                break
            if job is None:
                closing = True
            else:
                jobs.append(job)
        return jobs, closing

    def _patience(self, scheduler: Scheduler | None) -> float | None:
        """Seconds to wait for a job before there is something else to do; None for no end."""
        if scheduler is None:
            return None
        if scheduler.busy:
            return 0
        if scheduler.ahead is None or not scheduler.ahead.left:
            return None if scheduler.rested else IDLE
        return 0 if scheduler.ahead.begun and not _answering else QUIET

    @staticmethod
    def _use_quiet(scheduler: Scheduler) -> None:
        """Take a step of work ahead, unless another engine is answering.

        With none left the model rests, and files of the disk cache are packed.
        """
        if scheduler.ahead is not None and scheduler.ahead.left:
            if not _answering:
                scheduler.ahead.step()
            return
        try:
            scheduler.rest()
        except Exception as error:
            _log.warning("the device failed while nobody asked it: %s", error)
        if scheduler.packing is not None and not _answering:
            scheduler.packing.begin()

    def _let_go(self, scheduler: Scheduler | None, asked: _Unload) -> Scheduler | None:
        if scheduler is not None and not scheduler.busy and not asked.dropped:
            self._settle(scheduler, last=True)
            scheduler.unload()
            scheduler, self._model = None, ModelState.UNLOADED
        asked.set()
        return scheduler

    def _take(self, scheduler: Scheduler | None, job: _Job) -> Scheduler | None:
        try:
            if scheduler is None and self._is_over():
                raise LoadingEnded
            scheduler = scheduler or self._loaded_now()
            if job.gone():
                job.send(None)
            else:
                scheduler.add(job)
        except LoadingEnded:
            job.send(None)
        except BaseException as error:
            job.send(error)
            job.send(None)
        return scheduler

    def _loaded_now(self) -> Scheduler:
        self._model = ModelState.LOADING
        try:
            scheduler = self._load(self._tell_loading)
        except BaseException:
            self._model = ModelState.UNLOADED
            raise
        finally:
            with self._lock:
                self._loading = None
        self._model = ModelState.LOADED
        return scheduler

    def _is_over(self) -> bool:
        """True if this thread is to end and nobody waits for its work."""
        return self._closed and all(job.gone() for job in list(self._live))

    def _tell_loading(self, event: Loading) -> None:
        """Tell all who wait, and keep it for those who come meanwhile; LoadingEnded.

        An event equal to the last one is not told again: it only shows that the load goes on.
        """
        self.beats += 1
        with self._lock:
            if self._is_over():
                raise LoadingEnded
            if event == self._loading:
                return
            self._loading = event
            for job in list(self._live):
                if not job.gone():
                    job.send(event)

    def _step(self, scheduler: Scheduler) -> None:
        try:
            scheduler.step()
        except BaseException as error:
            # The thread outlives any request; those who asked are told.
            scheduler.fail(error)
        if not scheduler.busy:
            _answering.discard(self)
            self._settle(scheduler)

    @staticmethod
    def _settle(scheduler: Scheduler, *, last: bool = False) -> None:
        try:
            scheduler.settle(last=last)
        except Exception as error:
            _log.warning("what was computed could not be kept: %s", error)
