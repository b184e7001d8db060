"""The host's log file: this package's log lines and where errors came from, never their messages.

An error's message may quote a prompt; so may output of libraries, which goes nowhere.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

_MOST_BYTES = 1 << 20
_STDERR = 2


class LogFile(logging.Handler):
    """A handler that writes to the host's original stderr; at 1 MB the file begins again."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; a full disk loses it, and nothing else."""
        with suppress(Exception):  # a record whose parts have no text
            write_line(f"{record.levelname} {record.name}: {record.getMessage()}")


def write_line(text: str) -> None:
    """Write a line with the time before it; raises nothing."""
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {os.getpid()} {' '.join(text.splitlines())}\n"
    with suppress(OSError, ValueError):
        if os.fstat(_STDERR).st_size > _MOST_BYTES:
            os.ftruncate(_STDERR, 0)
        os.write(_STDERR, line.encode("utf-8", "backslashreplace"))


def write_error(error: BaseException, where: str) -> None:
    """Write an error's kind, and the lines of code that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    path = " < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(frames))
    write_line(f"ERROR in {where}: {type(error).__name__} at {path or 'no known place'}")


def take_over() -> None:
    """Route everything that this process would write to stderr through here, or nowhere."""
    logging.getLogger("llm_mlx_promptcache").addHandler(LogFile())
    logging.lastResort = None
    sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for good
    faulthandler.enable(_STDERR)  # of a crash in native code: functions and lines, no values
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable


def in_loop(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error that asyncio reports and nobody waits for."""
    error = context.get("exception")
    # Python 3.11 also reports connections that the host's end cut.
    if isinstance(error, BaseException) and not isinstance(error, asyncio.CancelledError):
        write_error(error, "the loop")


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    write_error(error, "the main thread")


def _uncaught_in_thread(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is not None:
        write_error(arguments.exc_value, "a thread")


def _unraisable(arguments: sys.UnraisableHookArgs) -> None:
    if arguments.exc_value is not None:
        write_error(arguments.exc_value, "no place that could raise it")
