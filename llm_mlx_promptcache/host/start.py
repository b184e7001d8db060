"""A channel to this home's host, which is started where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

from . import hung
from .environment import of_host
from .frames import MAX_HELLO, Channel, FrameError
from .hello import bare_hello, hello
from .place import HostUnavailable, connected, peer_pid, peer_uid, verify

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from .place import Place

_MODULE: Final = "llm_mlx_promptcache.host"
_POLL: Final = 0.01  # seconds between looks for a host that starts
_LARGEST_LOG: Final = 1_000_000  # bytes


class Waits(NamedTuple):
    """Seconds that each step of a start may take at most."""

    hello: float = 5.0
    hung: float = 0.05  # for the hello of a host that hung before
    lock: float = 15.0  # while others start one
    start: float = 15.0
    stop: float = 10.0  # of a host of another build


class HostRefused(HostUnavailable):
    """A host that is there and does not take this client. `busy` is how many it answers."""

    def __init__(self, why: str, *, busy: int, stopping: bool) -> None:
        super().__init__(why)
        self.busy = busy
        self.stopping = stopping


class HostSilent(HostUnavailable):
    """A host that took the connection and said nothing. `pid` is its process, 0 if unknown."""

    def __init__(self, pid: int) -> None:
        named = f" (process {pid})" if pid else ""
        super().__init__(f"the resident host{named} does not answer; end that process")
        self.pid = pid


def connect(
    place: Place, *, command: Sequence[str] | None = None, waits: Waits | None = None
) -> Channel:
    """A channel to a host of this build, for one ask; HostUnavailable where none can be had.

    One that is idle and of another build, settings or environment is replaced; one that is busy
    raises HostRefused. `command` starts a host, in place of the interpreter that runs this.
    """
    waits = waits or Waits()
    try:
        mine = hello(place)
        return _current(place, mine, waits) or _started(place, mine, command or _command(), waits)
    except OSError as error:
        raise HostUnavailable(f"no host can be had ({error.strerror or error})") from error


def find(place: Place, *, waits: Waits | None = None) -> Channel | None:
    """A channel to whatever host there is, for a question about it; None where there is none.

    It never starts one, and takes one of any build. HostRefused, HostSilent, HostUnavailable.
    """
    try:
        return _greeted(place, bare_hello(), waits or Waits())
    except OSError as error:
        raise HostUnavailable(f"no host can be asked ({error.strerror or error})") from error


def _current(place: Place, mine: Mapping[str, Any], waits: Waits) -> Channel | None:
    """A channel to a host that takes us; None where one must be started or replaced."""
    try:
        return _greeted(place, mine, waits)
    except HostRefused as refused:
        if refused.busy and not refused.stopping:
            raise
        return None


def _greeted(place: Place, mine: Mapping[str, Any], waits: Waits) -> Channel | None:
    """A channel whose host has welcomed us; None where there is no host."""
    verify(place.folder)
    name = hung.name_of(place)
    is_hung = hung.is_hung(place, name)
    until = time.monotonic() + (waits.hung if is_hung else waits.hello)
    sock = connected(place.socket, until)
    if sock is None:
        return None
    if (uid := peer_uid(sock)) != os.geteuid():
        sock.close()
        raise HostUnavailable(f"the host at {place.socket} belongs to user {uid}; remove that")
    channel = Channel(sock, name)
    try:
        answer = _answer(channel, {"hello": mine}, until)
    except BaseException as error:
        pid = peer_pid(sock)
        channel.close()
        if isinstance(error, TimeoutError):
            hung.remember(place, channel)
            raise HostSilent(pid) from None
        if isinstance(error, FrameError):
            raise HostUnavailable(f"what answers at {place.socket} is no host of ours") from error
        raise
    if answer is None:
        channel.close()
        return None
    if is_hung:
        hung.forget(place)
    return _welcomed(channel, answer)


def _answer(channel: Channel, question: Mapping[str, Any], until: float) -> dict[str, Any] | None:
    """What a host answers; None where it is gone."""
    try:
        channel.send(question, until - time.monotonic())
        return channel.receive(until - time.monotonic(), MAX_HELLO)
    except ConnectionError:
        return None


def _welcomed(channel: Channel, answer: Mapping[str, Any]) -> Channel:
    welcome = answer.get("welcome")
    if isinstance(welcome, dict):
        channel.welcome = welcome
        return channel
    channel.close()
    busy = answer.get("busy")
    raise HostRefused(
        f"the resident host does not take this process: {answer.get('refused')}",
        busy=busy if isinstance(busy, int) else 1,
        stopping=answer.get("stopping") is True,
    )


def _started(
    place: Place, mine: Mapping[str, Any], command: Sequence[str], waits: Waits
) -> Channel:
    """A channel to a host that this process, or another one meanwhile, has started."""
    with _alone(place.start_lock, waits.lock, "another process has long been starting a host"):
        channel = _current(place, mine, waits)
        if channel is not None:
            return channel
        _end(place, waits)
        return _first_answer(place, mine, _Child(place.log, command), waits)


def _end(place: Place, waits: Waits) -> None:
    """End the idle host that there may be, and wait for it; HostRefused where it is busy now."""
    try:
        channel = find(place, waits=waits)
    except HostRefused:  # it is stopping
        channel = None
    if channel is not None:
        with closing(channel):
            ask = {"ask": "stop", "why": "another build is asked for", "idle": True}
            answer = _answer(channel, ask, time.monotonic() + waits.stop)
        if answer is not None and "error" in answer:
            raise HostRefused("the resident host is busy", busy=1, stopping=False)
    with _alone(place.life_lock, waits.stop, "the host before has not ended"):
        pass


def _first_answer(place: Place, mine: Mapping[str, Any], child: _Child, waits: Waits) -> Channel:
    """The channel to a host that was just started, once it listens."""
    until = time.monotonic() + waits.start
    while time.monotonic() < until:
        ended = child.ended.wait(_POLL)
        channel = _greeted(place, mine, waits)
        if channel is not None:
            return channel
        if ended:
            raise HostUnavailable(
                f"the host ended at its start (status {child.status}); see {place.log}"
            )
    child.terminate()
    raise HostUnavailable(f"the host was not there after {waits.start:g} seconds; see {place.log}")


class _Child:
    """A host that this process has started; a thread of it waits for its end, so none is left."""

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
        """The exit status of one that ended."""
        return self._process.returncode

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.terminate()

    def _reap(self) -> None:
        self._process.wait()
        self.ended.set()


def _command() -> list[str]:
    if not sys.executable:
        raise HostUnavailable(
            "this Python does not know its own program, so no host can be started"
        )
    return [sys.executable, "-P", "-m", _MODULE]


@contextmanager
def _alone(path: Path, seconds: float, words: str) -> Iterator[None]:
    """Hold a lock of the place; HostUnavailable, in these words, where others hold it too long."""
    from filelock import FileLock, Timeout

    lock = FileLock(path, mode=0o600)
    try:
        lock.acquire(timeout=seconds, poll_interval=_POLL)
    except (Timeout, NotImplementedError) as error:
        raise HostUnavailable(f"{words} ({path})") from error
    try:
        yield
    finally:
        lock.release()


def _opened(log: Path) -> IO[bytes]:
    """The log, its owner's alone, to write at its end; emptied where it has grown large."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(log, flags, 0o600)
    os.fchmod(descriptor, 0o600)
    if os.fstat(descriptor).st_size > _LARGEST_LOG:
        os.ftruncate(descriptor, 0)
    return os.fdopen(descriptor, "ab", buffering=0)
