"""The end of a command by a signal, at which what it made is removed as at any other."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Final, Self

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STATUS: Final = 128  # and the signal's number: a shell's status for what a signal ended


class EndedBySignal(BaseException):
    """A signal came that ends the command; `status` is what it exits with."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = _STATUS + number


class Ending:
    """SIGINT, SIGTERM and SIGHUP inside of it raise EndedBySignal, the first of them and no other.

    In a process's main thread alone: no other hears signals. One that is ignored (nohup) stays so.
    To remove what was made, whenever a signal comes:

        try:
            try:
                ...
            finally:
                ending.hold()
        finally:
            ...  # a signal raises behind this, at the end of the `with`
    """

    def __init__(self) -> None:
        self._usual: dict[int, Any] = {}
        self._came = 0
        self._holds = False

    def __enter__(self) -> Self:
        main = threading.current_thread() is threading.main_thread()
        for number in _SIGNALS if main else ():
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._usual[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, usual in self._usual.items():
            signal.signal(number, usual)
        if kind is None:
            self.check()

    def hold(self) -> None:
        """Let all that follows inside of it end first."""
        self._holds = True

    def check(self) -> None:
        """Raise for a signal that is held, or came where nothing that is raised gets through."""
        if self._came:
            raise EndedBySignal(self._came)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._came:
            return
        self._came = number
        if not self._holds:
            raise EndedBySignal(number)
