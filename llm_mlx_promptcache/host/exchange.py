"""One ask of a host and its answer, frame by frame; the client's side of a connection."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from ..engine import wire
from ..engine.events import Event, Loading
from .errors import error_from_json
from .frames import Channel, FrameError
from .hello import check_build
from .start import Waits

_OURS: Final = __name__.partition(".")[0]
_LOUDEST: Final = logging.CRITICAL
_MOST_TEXT: Final = 10_000  # characters of a line that is logged


class Patience(NamedTuple):
    """The seconds that a host may stay silent: while it is sent an ask, loads a model, or computes.

    `again` is the limit for a host that was seen to hang with the same model, `waits` are those
    of the start.
    """

    ask: float = 60.0
    loading: float = 600.0
    computing: float = 120.0
    again: float = 2.5
    waits: Waits = Waits()


class ConnectionLost(Exception):
    """The connection ended before the answer did; the message tells the user why."""


class HostHangs(ConnectionLost):
    """The host stayed silent for longer than it may."""


class AskError(Exception):
    """An ask can't be sent; the message tells the user why."""


class Line:
    """The connection of one request, which any thread may end at any moment."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channel: Channel | None = None
        self._ended = False

    @property
    def ended(self) -> bool:
        """True if nobody waits for the answer any more."""
        return self._ended

    @contextmanager
    def over(self, channel: Channel) -> Iterator[Channel]:
        """Use this channel, and close it then; ConnectionLost if the request has ended."""
        try:
            with self._lock:
                self._channel = channel
            if self._ended:
                raise ConnectionLost("nobody waits for the answer")
            yield channel
        finally:
            with self._lock:
                self._channel = None
            channel.close()

    def end(self) -> None:
        """End the request: a thread that reads its frames wakes at once."""
        with self._lock:
            self._ended = True
            if self._channel is not None:
                self._channel.shut()


def answer(
    channel: Channel, ask: Mapping[str, Any], patience: Patience, first: float
) -> Iterator[Event]:
    """The events of an answer; its error where there is one, ConnectionLost, HostHangs, AskError.

    HostUnavailable if this process's files are no longer those that it runs: it is looked for while
    the host begins. `first` is how long the host may stay silent before its first frame. Its log
    lines beside the answer are logged here.
    """
    _send(channel, ask, patience)
    check_build()
    seconds, usual = first, patience.loading
    while "end" not in (frame := _receive(channel, seconds)):
        if "error" in frame:
            raise error_from_json(frame["error"]) from None
        if "log" in frame:
            _log_again(frame["log"])
        event = _event(frame["event"]) if "event" in frame else None
        if event is not None:
            usual = patience.loading if isinstance(event, Loading) else patience.computing
        seconds = usual  # any frame (a beat, or one of a later version) shows that it lives
        if event is not None:
            yield event


def result(channel: Channel, ask: Mapping[str, Any], patience: Patience) -> Mapping[str, Any]:
    """The result of any other ask; its error where there is one, ConnectionLost, HostHangs."""
    _send(channel, ask, patience)
    while "result" not in (frame := _receive(channel, patience.ask)):
        if "error" in frame:
            raise error_from_json(frame["error"]) from None
    found = frame["result"]
    return found if isinstance(found, Mapping) else {}


def _send(channel: Channel, ask: Mapping[str, Any], patience: Patience) -> None:
    try:
        channel.send(ask, patience.ask)
    except FrameError as error:
        raise AskError(str(error)) from None
    except TimeoutError:
        raise HostHangs(f"{_named(channel)} does not read its requests") from None
    except OSError:
        pass  # it ended, or its answer says why it takes nothing


def _receive(channel: Channel, seconds: float) -> dict[str, Any]:
    try:
        frame = channel.receive(seconds)
    except FrameError as error:
        raise ConnectionLost(f"the answer of {_named(channel)} can't be read ({error})") from None
    except TimeoutError:
        raise HostHangs(f"{_named(channel)} hangs; end that process") from None
    except OSError as error:
        raise ConnectionLost(f"{_named(channel)} can't be reached ({error.strerror})") from None
    if frame is None:
        raise ConnectionLost(f"{_named(channel)} ended (killed?)")
    return frame


def _event(data: Any) -> Event:
    try:
        event = wire.from_json(data)
    except ValueError as error:
        raise ConnectionLost(f"the resident host's answer can't be read ({error})") from None
    if not isinstance(event, Event):
        raise ConnectionLost("the resident host sent something that is no event of an answer")
    return event


def _log_again(told: Any) -> None:
    """Log a line of the host's log, under the same logger if it is one of ours."""
    match told:
        case [int(level), str(name), str(text)] if name.split(".")[0] == _OURS:
            logging.getLogger(name).log(min(level, _LOUDEST), "%s", text[:_MOST_TEXT])


def _named(channel: Channel) -> str:
    """The host, named so that its user can find it."""
    pid = channel.welcome.get("pid")
    return f"the resident host (process {pid})" if isinstance(pid, int) else "the resident host"
