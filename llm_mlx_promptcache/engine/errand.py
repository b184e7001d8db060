"""Errand: work that another thread gives the engine's, which does it between two steps."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from .scheduler import Scheduler

T = TypeVar("T")


class Errand(Generic[T]):
    """One piece of work and what it came to; `run` on the engine's thread, `result` on any."""

    def __init__(self, work: Callable[[Scheduler], T]) -> None:
        self._work = work
        self._done = threading.Event()
        self._result: T | None = None
        self._error: BaseException | None = None

    def run(self, scheduler: Scheduler | None) -> None:
        """Do it if there is a model; its errors are the asker's."""
        try:
            if scheduler is not None:
                self._result = self._work(scheduler)
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()

    def result(self) -> T | None:
        """Wait for it; None where there was no model. Its error is raised here."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._result
