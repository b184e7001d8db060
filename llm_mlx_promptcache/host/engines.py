"""The one place where front ends get an engine, in the host or in their own process."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncGenerator, Generator, Iterable
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from ..config import keep_seconds
from ..models.references import served_name, spelled

if TYPE_CHECKING:
    from ..chat.messages import Message
    from ..engine.events import Event, Finished
    from ..engine.request import GenerationRequest
    from .client import RemoteEngine


class Where(Enum):
    """The process in which a model runs."""

    HOST = "in the host, where the user wants one"
    HERE = "in this process"


class AnyEngine(Protocol):
    """The interface of an engine to front ends, wherever it runs."""

    def generate(self, request: GenerationRequest) -> Generator[Event]:
        """The events of one answer, as they come; a reader that stops early frees the engine."""

    def agenerate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """The same for an event loop, which is never blocked."""

    @property
    def loaded(self) -> bool:
        """True if the model is in memory."""

    def unload(self, timeout: float = 30.0) -> bool:
        """Free the model's memory, unless it is answering; the next request loads it again."""

    def warm(self, messages: Iterable[Message], **asked: Any) -> Finished:
        """Prefill and pin the common start of conversations that begin with these messages."""


_remote: dict[str, RemoteEngine] = {}
_lock = threading.Lock()


def engine_for(reference: str, where: Where = Where.HOST) -> AnyEngine:
    """The engine of a model: "default", a folder, or a hub id. Loads and starts nothing yet.

    In this process where the user wants no host (`keep` is 0) or the system has no Unix sockets;
    never here where it runs over several machines.
    """
    if served_name(reference):
        from .served import ServedEngine

        return _remembered(reference, ServedEngine)
    if where is Where.HERE or keep_seconds() == 0 or not hasattr(socket, "AF_UNIX"):
        from ..engine.pool import engine_for as engine_here

        return engine_here(reference)
    from .client import RemoteEngine

    return _remembered(reference, RemoteEngine)


def _remembered(reference: str, kind: type[RemoteEngine]) -> RemoteEngine:
    """The one engine of this process for a model in another one."""
    reference = spelled(reference)
    with _lock:
        if reference not in _remote:
            _remote[reference] = kind(reference)
        return _remote[reference]
