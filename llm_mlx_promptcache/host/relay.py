"""Log lines and warnings of the host, on their way to the front ends."""

from __future__ import annotations

import asyncio
import logging
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from ..engine.pool import model_on_thread
from .notices import Notice

_OURS = "llm_mlx_promptcache"
# Libraries whose warnings the user would see with an engine in the same process.
_LIBRARIES = ("huggingface_hub", "mlx_lm", "transformers")
_MOST_TEXT = 4000  # characters of one notice

TellNotice = Callable[[Notice, Callable[[], bool] | None], None]


class Relay(logging.Handler):
    """A handler that passes records, from any thread, to `tell` on the loop.

    A record may say how long it holds (`extra={"holds": function}`): front ends that come later
    are told it too, once a process, while the function returns True.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, tell: TellNotice) -> None:
        super().__init__(logging.WARNING)
        self._loop = loop
        self._tell = tell

    def listen(self) -> None:
        """Take this process's log records and warnings from now on."""
        for name in (_OURS, *_LIBRARIES):
            logging.getLogger(name).addHandler(self)
        warnings.showwarning = self.warn

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on; nothing that goes wrong here reaches the caller who logged it."""
        with suppress(Exception):
            model = model_on_thread(record.thread)
            name = record.name if record.name.startswith(_OURS) else f"{_OURS}.{record.name}"
            notice = Notice(record.levelno, name, record.getMessage()[:_MOST_TEXT], model)
            self._hand_over(notice, getattr(record, "holds", None))

    def warn(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Pass a warning on; Python itself gives each once a process."""
        with suppress(Exception):
            text = f"{category.__name__}: {message}"[:_MOST_TEXT]
            model = model_on_thread(threading.get_ident())
            self._hand_over(Notice(logging.WARNING, f"{_OURS}.warnings", text, model), lambda: True)

    def _hand_over(self, notice: Notice, holds: Callable[[], bool] | None) -> None:
        self._loop.call_soon_threadsafe(self._tell, notice, holds)
