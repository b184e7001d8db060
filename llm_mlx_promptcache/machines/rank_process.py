"""RankProcess: a rank as rank 0 sees it, a process of this machine or one behind ssh."""

from __future__ import annotations

import logging
import os
import queue
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import IO, Any, Final

from ..config import APP
from ..host.environment import of_host
from ..host.log import write_line
from ..models.errors import one_line
from .hostfile import Machine
from .orders import MOST_BYTES, RankOrder, heard, order_to_line

_MODULE: Final = "llm_mlx_promptcache.machines"
# No question is asked of a user who does not look, nothing is forwarded, a network that is gone is
# noticed, and no connection that is shared outlives the rank.
_SSH: Final = (
    "ssh",
    "-T",
    "-a",
    "-x",
    "-o",
    "BatchMode=yes",
    "-o",
    "ConnectTimeout=15",
    "-o",
    "ServerAliveInterval=5",
    "-o",
    "ServerAliveCountMax=2",
    "-o",
    "ControlPath=none",
    "--",
)
_MOST_LINE: Final = 4096  # bytes of a line that is kept
_MOST_WARNING: Final = 500
_END_SECONDS: Final = 5.0
_OURS: Final = f"{APP}: ".encode()  # before the last words of a process of ours
# A warning in a rank's log (host/log.py): who asks is told it, as a warning of this process.
_WARNING: Final = re.compile(rb"[-\d]+ [:\d]+ \d+ WARNING llm_mlx_promptcache[.\w]*: (.+)")
_log = logging.getLogger(__name__)


class RankFailed(RuntimeError):
    """A rank that can't be had, or is gone; the message names its host and says why."""


def rank_command(machine: Machine, python: str) -> list[str]:
    """The command that starts a rank: this interpreter here, or `python` by way of ssh.

    A shell reads the words on the other machine, so they are quoted for one.
    """
    if machine.is_here:
        return [sys.executable, "-P", "-m", _MODULE]
    return [*_SSH, machine.ssh, shlex.join([python, "-P", "-m", _MODULE])]


class RankProcess:
    """One rank: its process, what it said of itself, and its last words.

    It ends when its standard input does, so it outlives no starter.
    """

    def __init__(self, machine: Machine, order: RankOrder, python: str) -> None:
        self.rank = order.rank
        self.host = machine.ssh
        self._order = order_to_line(order)
        self._is_here = machine.is_here
        self._last_words = b""
        self._hello: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - no shell here, and quoted for the other
                rank_command(machine, python),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
                env=of_host(os.environ) if self._is_here else None,
                start_new_session=True,
            )
        except OSError as error:
            raise RankFailed(f"{self.host}: it can't be started ({error.strerror})") from error
        self._threads = [
            threading.Thread(target=self._read, name=f"rank-{self.rank}-out", daemon=True),
            threading.Thread(target=self._log, name=f"rank-{self.rank}-err", daemon=True),
            threading.Thread(target=self._tell, name=f"rank-{self.rank}-in", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """The process that was started here: the rank's, or ssh's."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """True if its process is gone."""
        return self._process.poll() is not None

    def hello(self, until: float) -> Mapping[str, Any]:
        """Its words about itself; RankFailed, also if it says nothing by then."""
        try:
            told = self._hello.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            raise RankFailed(f"{self.host}: it said nothing in time{self._why()}") from None
        if told is None:
            raise self.failed()
        return told

    def failed(self) -> RankFailed:
        """The error of a rank that has ended, in its own last words."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        self._threads[1].join(_END_SECONDS)
        return RankFailed(f"{self.host}: {self._ending()}{self._why()}")

    def end(self, seconds: float = _END_SECONDS) -> None:
        """Wait so long for its end, and then make one."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        self.kill()
        for thread in self._threads:
            thread.join(_END_SECONDS)

    def close(self) -> None:
        """End its standard input, which ends it."""
        with suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()

    def kill(self) -> None:
        """End it at once, if it is there, and wait for that."""
        self.close()
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)

    def _ending(self) -> str:
        status = self._process.returncode
        if status is None:
            return "it does not answer"
        return f"it was killed (signal {-status})" if status < 0 else f"it ended (status {status})"

    def _why(self) -> str:
        text = self._last_words.decode("utf-8", "replace").removeprefix(f"{APP}: ").strip()
        shown = _printable(text)
        return f": {shown}" if shown else ""

    def _tell(self) -> None:
        """An order may be longer than what a pipe takes of who does not read yet."""
        with suppress(OSError, ValueError):  # it ended already, and says why
            assert self._process.stdin is not None
            self._process.stdin.write(self._order)
            self._process.stdin.flush()

    def _read(self) -> None:
        """Read its words about itself, the first line with our mark; the rest is nobody's."""
        assert self._process.stdout is not None
        read = 0
        for line in _lines(self._process.stdout, MOST_BYTES):
            read += len(line)
            told = heard(line) if read <= MOST_BYTES else None
            if told is not None:
                self._hello.put(told)
                read = MOST_BYTES + 1
        self._hello.put(None)

    def _log(self) -> None:
        """Write its stderr to our log; the last line is the cause of its death."""
        assert self._process.stderr is not None
        for line in _lines(self._process.stderr, _MOST_LINE):
            if line.strip():
                if line.startswith(_OURS) or not self._last_words.startswith(_OURS):
                    self._last_words = line
                self._note(line)

    def _note(self, line: bytes) -> None:
        """Pass a line of its log on: a warning to who asks, anything else to our log."""
        if warning := _WARNING.match(line):
            text = one_line(_printable(warning[1].decode("utf-8", "replace")), _MOST_WARNING)
            _log.warning("%s: %s", self.host, text)
        else:
            write_line(f"{self.host}: {line.decode('utf-8', 'replace').rstrip()}")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _lines(stream: IO[bytes], most: int) -> Iterator[bytes]:
    """The lines of a stream, of long ones pieces; it is closed behind the last."""
    with suppress(OSError, ValueError), stream:
        while line := stream.readline(most):
            yield line
