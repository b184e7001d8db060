"""One question to a running host; nothing here ever starts one.

Importing this file imports no MLX.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

from .errors import error_from_json
from .frames import FrameError
from .place import HostUnavailable, Place, existing_place
from .start import HostSilent, find

ANSWER_SECONDS: Final = 60.0  # a clear rewrites an index
_ENDED: Final = "the resident host ended meanwhile"
_STATES: Final = {
    "R": "running",
    "S": "sleeping",
    "I": "sleeping",
    "D": "waiting for a device",
    "U": "waiting for a device",
    "T": "stopped",
    "t": "stopped",
    "Z": "ended, but not waited for",
}


class EndedMeanwhile(HostUnavailable):
    """The host ended in the middle of a question."""


def asked(
    ask: Mapping[str, Any], served: str = "", *, seconds: float = ANSWER_SECONDS
) -> Mapping[str, Any] | None:
    """The host's result, with its `pid` added; None where there is no host.

    With a name, the host of a model that runs over several machines. The host's errors are raised
    here. HostUnavailable where a host does not answer in so many seconds.
    """
    place = existing_place(served)
    channel = None if place is None else find(place)
    if channel is None:
        return None
    with closing(channel):
        try:
            channel.send(ask, seconds)
            frame = channel.receive(seconds)
        except TimeoutError:
            raise HostSilent(_pid(channel.welcome)) from None
        except ConnectionError:
            raise EndedMeanwhile(_ENDED) from None
        except (FrameError, OSError) as error:
            raise HostUnavailable(f"the resident host's answer can't be read ({error})") from error
        if frame is None:
            raise EndedMeanwhile(_ENDED)
        if "error" in frame:
            raise error_from_json(frame["error"]) from None
        result = frame.get("result")
        told: Mapping[str, Any] = result if isinstance(result, Mapping) else {}
        return {"pid": _pid(channel.welcome), **told}


def has_ended(place: Place, seconds: float) -> bool:
    """True if no host lives there any more, within `seconds`."""
    from filelock import FileLock, Timeout

    lock = FileLock(place.life_lock, mode=0o600)
    try:
        lock.acquire(timeout=seconds, poll_interval=0.02)
    except Timeout:
        return False
    lock.release()
    return True


def terminate(pid: int) -> None:
    """Ask a process of ours that does not answer to end; it first writes what it computed."""
    with suppress(OSError):
        os.kill(pid, signal.SIGTERM)


def state_of(pid: int) -> str:
    """A process's state in words; "unknown" where the system does not tell."""
    letter = ""
    with suppress(OSError, subprocess.SubprocessError, IndexError):
        stat = Path(f"/proc/{pid}/stat")
        if stat.exists():
            letter = stat.read_text().rpartition(")")[2].split()[0]
        else:
            command = ["/bin/ps", "-o", "stat=", "-p", str(pid)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=5)  # noqa: S603
            letter = done.stdout.strip()[:1]
    return _STATES.get(letter, "unknown")


def _pid(welcome: Mapping[str, Any]) -> int:
    pid = welcome.get("pid")
    return pid if isinstance(pid, int) and pid > 1 else 0
