"""Files of the disk cache, packed on a thread of their own while nobody asks this process.

Each step is one read or one write of 8 MB at most, and no request waits for it. The end of the
process waits for the step under way, for no other, and not long for one that hangs.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from ..cache.disk.files import locked

REST_SECONDS: Final = 60.0  # since anybody went on with a conversation
_END_SECONDS: Final = 2.0  # that the end waits for a step; one takes a hundredth of that
_log = logging.getLogger(__name__)


class PackingSteps:
    """One packing after another, a step at a time; what is unfinished goes on the next time."""

    def __init__(self, begin: Callable[[], Iterator[Any]]) -> None:
        self._begin = begin
        self._steps: Iterator[Any] | None = None

    def take(self) -> bool:
        """Take a step; False if nothing is left to do."""
        if self._steps is None:
            self._steps = self._begin()
        try:
            if next(self._steps, None) is None:
                self._steps = None
        except Exception as error:  # the process has more to do than this
            self._steps = None
            _log.warning("files of the disk cache could not be packed: %s", error)
        return self._steps is not None

    def drop(self) -> None:
        """Leave the packing under way; its file is removed."""
        self._steps = None


class PackingThread:
    """The packing of this process: begun while nobody asks, paused by whoever does.

    `steps` begins the work; what is unfinished goes on the next time. A fork begins anew.
    """

    def __init__(self, steps: Callable[[], Iterator[Any]]) -> None:
        self._begun = steps
        self._start()
        # Made before any engine, this is called when all of them have ended: none begins it again.
        atexit.register(self.end)

    def _start(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._steps = PackingSteps(self._begun)
        self._thread: threading.Thread | None = None
        self._wanted = False

    def begin(self) -> None:
        """Go on, or look for something to pack; returns at once."""
        if self._process != os.getpid():  # the thread stayed with the parent
            self._start()
        with self._lock:
            self._wanted = True
            if self._thread is None:
                # A daemon: a disk that hangs must not keep the process.
                thread = threading.Thread(target=self._run, name="span-packer", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the interpreter is ending
                    return
                self._thread = thread

    def pause(self) -> None:
        """Have no other step taken; returns at once."""
        self._wanted = False

    def end(self) -> None:
        """Have no other step taken, and nothing left unfinished; waits for the one under way."""
        if self._process != os.getpid():
            return
        self._wanted = False
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(_END_SECONDS)
        if thread is None or not thread.is_alive():
            self._steps.drop()

    def _run(self) -> None:
        try:
            with alone() as may:
                while self._goes_on(may=may):
                    if not self._steps.take():
                        self._wanted = False
        except OSError as error:
            _log.warning("files of the disk cache could not be packed: %s", error)
            self._goes_on(may=False)

    def _goes_on(self, *, may: bool) -> bool:
        """True if there is one more step to take; otherwise the next `begin` needs a new thread."""
        with self._lock:
            goes_on = self._wanted and may
            if not goes_on:
                self._wanted, self._thread = False, None
            return goes_on


def packing_steps(rested: float) -> Iterator[Any]:
    """The packing to do now in this user's folder, step by step."""
    from .pool import disk_store, uses_disk

    return disk_store().compact(rested=rested) if uses_disk() else iter(())


@contextmanager
def alone() -> Iterator[bool]:
    """The time in which no other process or thread is at it: two would copy the same files.

    Yields False if another one is.
    """
    from .pool import disk_store

    spans = disk_store().spans_folder
    if not spans.is_dir():
        yield True
        return
    with locked(spans, wait=False) as first:
        yield first
