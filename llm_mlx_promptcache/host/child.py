"""The host's process as its starter sees it: its environment and log, and how it ended."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import IO, TYPE_CHECKING, Final

from .environment import of_host
from .place import HostUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_MODULE: Final = "llm_mlx_promptcache.host"
_LARGEST_LOG: Final = 1_000_000  # bytes


class HostChild:
    """A host started by this process; a thread waits for its end, so that no zombie is left."""

    def __init__(self, log: Path, command: Sequence[str]) -> None:
        self.ended = threading.Event()
        with _opened(log) as errors:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and a module of ours
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                close_fds=True,
                cwd="/",
                env=of_host(os.environ),
                start_new_session=True,
                umask=0o077,
            )
        threading.Thread(target=self._reap, name="mlx-cached-host", daemon=True).start()

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


def host_command() -> list[str]:
    """The command that starts a host: this interpreter, without its working folder."""
    if not sys.executable:
        raise HostUnavailable(
            "this Python does not know its own program, so no host can be started"
        )
    return [sys.executable, "-P", "-m", _MODULE]


def _opened(log: Path) -> IO[bytes]:
    """The log, its owner's alone, opened for appending; emptied if it has grown large."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(log, flags, 0o600)
    os.fchmod(descriptor, 0o600)
    if os.fstat(descriptor).st_size > _LARGEST_LOG:
        os.ftruncate(descriptor, 0)
    return os.fdopen(descriptor, "ab", buffering=0)
