"""A channel to this home's host, which is started if there is none."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from . import hung
from .child import HostChild, Program, host_command
from .frames import MAX_HELLO, Channel, FrameError
from .hello import bare_hello, check_build, shown, unchecked_hello
from .place import HostUnavailable, connected, peer_pid, peer_uid, verify

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from .place import Place

_POLL: Final = 0.01  # seconds between looks for a host that starts
_LOOK: Final = 0.05  # and for the end of one that was there


class Waits(NamedTuple):
    """Seconds that each step of a start may take at most."""

    hello: float = 5.0
    hung: float = 0.05  # for the hello of a host that hung before
    lock: float = 15.0  # while others start one
    start: float = 15.0
    stop: float = 10.0  # of a host of another build


class HostRefused(HostUnavailable):
    """A host that is there and does not take this client; `busy` is the number that it answers."""

    def __init__(self, why: str, *, busy: int, stopping: bool) -> None:
        super().__init__(why)
        self.busy = busy
        self.stopping = stopping


class HostSilent(HostUnavailable):
    """A host that took the connection and stayed silent. `pid` is its process, 0 if unknown."""

    def __init__(self, pid: int) -> None:
        named = f" (process {pid})" if pid else ""
        super().__init__(f"the resident host{named} does not answer; end that process")
        self.pid = pid


class HostPresent(HostUnavailable):
    """A host that lives where a new one was to be started. `pid` is its process, 0 if unknown."""

    def __init__(self, channel: Channel) -> None:
        pid = channel.welcome.get("pid")
        self.pid = pid if isinstance(pid, int) else 0
        channel.close()
        super().__init__(f"a host is there already (process {self.pid})")


class _TookTooLong(HostUnavailable):
    """A step of a start that took too long."""


def connect(place: Place, *, program: Program | None = None, waits: Waits | None = None) -> Channel:
    """A channel to a host of this build, for one ask; HostUnavailable where none can be had.

    An idle one of another build, settings or environment is replaced; a busy one raises
    HostRefused. `program` starts a host, in place of this interpreter. Whether this process's files
    are still those that it runs is left to `exchange.answer`, where a host is there already.
    """
    waits = waits or Waits()
    try:
        mine = unchecked_hello(place)
        channel = _welcomed(place, mine, waits)
        return channel or _started(place, mine, program or Program(host_command()), waits)
    except OSError as error:
        raise HostUnavailable(f"no host can be had ({_told(error)})") from error


def find(
    place: Place, *, mine: Mapping[str, Any] | None = None, waits: Waits | None = None
) -> Channel | None:
    """A channel to whatever host there is, for a question about it; None where there is none.

    It never starts one, and takes one of any build, which then does only a few things; with a whole
    hello (`mine`) only one that fits. HostRefused, HostSilent, HostUnavailable.
    """
    try:
        return _greeted(place, mine or bare_hello(), waits or Waits())
    except OSError as error:
        raise HostUnavailable(f"no host can be asked ({_told(error)})") from error


@contextmanager
def starting_alone(place: Place, waits: Waits | None = None) -> Iterator[None]:
    """Nobody else starts a host there meanwhile; HostUnavailable where others take too long."""
    wait = (waits or Waits()).lock
    with _alone(place.start_lock, wait, "another process has long been starting a host"):
        yield


def check_absent(place: Place, waits: Waits | None = None) -> None:
    """HostPresent if a host lives there, of whatever build; one that is ending is none."""
    try:
        channel = find(place, mine=unchecked_hello(place), waits=waits)
    except HostRefused as refused:
        if refused.stopping:
            return
        channel = find(place, waits=waits)
    if channel is not None:
        raise HostPresent(channel)


def start_new(
    place: Place, program: Program, waits: Waits | None = None
) -> tuple[Channel, HostChild]:
    """A channel to a host that this call starts, and its process; HostPresent where one lives.

    The caller is `starting_alone`. HostUnavailable where none can be had; none is left then.
    """
    waits = waits or Waits()
    try:
        mine = unchecked_hello(place)
        check_build()
        if (channel := _outlived(place, mine, waits)) is not None:
            raise HostPresent(channel)
        child = HostChild(place.log, program)
        try:
            channel = _first_answer(place, mine, child, waits)
            if channel.welcome.get("pid") != child.pid:  # of a start whose starter was killed
                raise HostPresent(channel)
        except BaseException:
            child.terminate()
            raise
    except OSError as error:
        raise HostUnavailable(f"no host can be had ({_told(error)})") from error
    return channel, child


def _welcomed(place: Place, mine: Mapping[str, Any], waits: Waits) -> Channel | None:
    """A channel to a host that takes us; None if one must be started, or replaced first."""
    try:
        return _greeted(place, mine, waits)
    except HostRefused as refused:
        check_build()  # it may be this process that is out of date
        if refused.busy and not refused.stopping:
            raise
        return None


def _greeted(place: Place, mine: Mapping[str, Any], waits: Waits) -> Channel | None:
    """A channel whose host has answered our hello; None if there is no host."""
    verify(place.folder)
    name = hung.name_of(place)
    was_hung = hung.is_hung(place, name)
    until = time.monotonic() + (waits.hung if was_hung else waits.hello)
    pid = 0
    with ExitStack() as opened:
        try:
            sock = connected(place.socket, until)
            if sock is None:
                return None
            opened.callback(sock.close)
            pid = peer_pid(sock)
            _check_peer(place, sock)
            channel = Channel(sock, name)
            answer = _answer(channel, {"hello": mine}, until)
        except TimeoutError:
            hung.remember(place, name)
            raise HostSilent(pid) from None
        except FrameError as error:
            raise HostUnavailable(f"the answer at {place.socket} is not a host's") from error
        if answer is None:
            return None
        if was_hung:
            hung.forget(place)
        channel.welcome = _welcome(answer)
        opened.pop_all()
        return channel


def _check_peer(place: Place, sock: socket.socket) -> None:
    if (uid := peer_uid(sock)) != os.geteuid():
        raise HostUnavailable(f"the host at {place.socket} belongs to user {uid}; remove that")


def _answer(channel: Channel, question: Mapping[str, Any], until: float) -> dict[str, Any] | None:
    """A host's answer; None if it is gone."""
    try:
        channel.send(question, until - time.monotonic())
        return channel.receive(until - time.monotonic(), MAX_HELLO)
    except ConnectionError:
        return None


def _welcome(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The description of itself by a host that welcomes us; HostRefused."""
    welcome, busy = answer.get("welcome"), answer.get("busy")
    if isinstance(welcome, dict):
        return welcome
    raise HostRefused(
        f"the resident host does not take this process: {shown(answer.get('refused'))}",
        busy=busy if isinstance(busy, int) else 1,
        stopping=answer.get("stopping") is True,
    )


def _started(place: Place, mine: Mapping[str, Any], program: Program, waits: Waits) -> Channel:
    """A channel to a host that this process, or meanwhile another one, has started."""
    check_build()
    with starting_alone(place, waits):
        try:
            channel = _greeted(place, mine, waits)
            if channel is not None:
                return channel
        except HostRefused as refused:
            if not refused.stopping:
                _end(place, refused, waits)
        hung.check_starts(place)
        try:
            channel = _outlived(place, mine, waits)
            return channel or _first_answer(place, mine, HostChild(place.log, program), waits)
        except _TookTooLong:
            hung.remember_start(place)
            raise


def _end(place: Place, refused: HostRefused, waits: Waits) -> None:
    """End a host that has refused us, if it is idle; raises that refusal if it is not."""
    channel = find(place, waits=waits)
    if channel is not None:
        with closing(channel):
            ask = {"ask": "stop", "why": "another build is asked for", "idle": True}
            answer = _answer(channel, ask, time.monotonic() + waits.stop)
        if answer is not None and "error" in answer:
            raise refused


def _outlived(place: Place, mine: Mapping[str, Any], waits: Waits) -> Channel | None:
    """None once no host lives in the place; a channel if the one that does takes us after all.

    That is one whose queue of connections was full: some systems then say that nobody listens.
    """
    until = time.monotonic() + waits.stop
    while True:
        try:
            with _alone(place.life_lock, _LOOK, "the host before has not ended"):
                return None
        except _TookTooLong:
            if time.monotonic() >= until:
                raise
        channel = _welcomed(place, mine, waits)
        if channel is not None:
            return channel


def _first_answer(place: Place, mine: Mapping[str, Any], child: HostChild, waits: Waits) -> Channel:
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
    raise _TookTooLong(f"the host was not there after {waits.start:g} seconds; see {place.log}")


def _told(error: OSError) -> str:
    return ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)


@contextmanager
def _alone(path: Path, seconds: float, words: str) -> Iterator[None]:
    """Hold a lock of the place; _TookTooLong, in these words, where others hold it too long."""
    from filelock import FileLock, Timeout

    lock = FileLock(path, mode=0o600)
    try:
        lock.acquire(timeout=seconds, poll_interval=_POLL)
    except (Timeout, NotImplementedError) as error:
        raise _TookTooLong(f"{words} ({path})") from error
    try:
        yield
    finally:
        lock.release()
