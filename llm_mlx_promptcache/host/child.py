"""The host's process as its starter sees it: its environment and log, and how it ended."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Final, NamedTuple

from .environment import of_host
from .place import HostUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_MODULE: Final = "llm_mlx_promptcache.host"
_LARGEST_LOG: Final = 1_000_000  # bytes


class Program(NamedTuple):
    """The program that starts a host: its command, and the words for its standard input, if any.

    `variables` are names of the environment that it is given beside those of every host.
    """

    command: Sequence[str]
    told: bytes = b""
    variables: Sequence[str] = ()


class HostChild:
    """A host started by this process; a thread waits for its end, so that no zombie is left."""

    def __init__(self, log: Path, program: Program) -> None:
        self.ended = threading.Event()
        more = {name: os.environ[name] for name in program.variables if name in os.environ}
        with _opened(log) as errors, _to_read(program.told) as told:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and a module of ours
                program.command,
                stdin=told,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                close_fds=True,
                cwd="/",
                env={**of_host(os.environ), **more},
                start_new_session=True,
                umask=0o077,
            )
        threading.Thread(target=self._reap, name="mlx-cached-host", daemon=True).start()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.returncode

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.terminate()

    def _reap(self) -> None:
        self._process.wait()
        self.ended.set()


def host_command(module: str = _MODULE) -> list[str]:
    """The command that starts a host: this interpreter, without its working folder."""
    if not sys.executable:
        raise HostUnavailable(
            "this Python does not know its own program, so no host can be started"
        )
    return [sys.executable, "-P", "-m", module]


@contextmanager
def _to_read(told: bytes) -> Iterator[IO[bytes] | int]:
    """The standard input of a process: these bytes, in no file that has a name."""
    if not told:
        yield subprocess.DEVNULL
        return
    with tempfile.TemporaryFile() as file:
        file.write(told)
        file.seek(0)
        yield file


def _opened(log: Path) -> IO[bytes]:
    """The log, its owner's alone, opened for appending; emptied if it has grown large."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(log, flags, 0o600)
    os.fchmod(descriptor, 0o600)
    if os.fstat(descriptor).st_size > _LARGEST_LOG:
        os.ftruncate(descriptor, 0)
    return os.fdopen(descriptor, "ab", buffering=0)
