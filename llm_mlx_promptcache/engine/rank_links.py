"""The line between two ranks, each of which proves that it knows the secret before it is heard.

Frames are JSON objects behind a letter for their kind and three bytes of length. Nothing waits here
but the proof, which has a deadline. What arrives is bounded, and never more than data. Nothing is
encrypted, and nothing but the proof is signed.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from enum import Enum
from typing import Any, Final

MOST_BYTES: Final = (1 << 24) - 1  # of a frame: a prompt of two million tokens
# What may wait for a rank that reads nothing; it is told to be silent long before.
_MOST_WAITING: Final = 1 << 28
_HEADER: Final = 4
_PIECE: Final = 1 << 18
_NONCE: Final = 32
_GREETING: Final = b"mlx-cached ranks 1\n"
_LEAST_SECRET: Final = 16


class LinkError(ConnectionError):
    """The other end is gone, or what it said is none of ours; says which, without its name."""


class FrameKind(Enum):
    """The kind of a frame; the letter that it begins with."""

    WORD = b"w"  # what rank 0 decided
    SHARE = b"s"  # a rank's part of what all agree on, and what that came to
    BEAT = b"b"
    END = b"e"


_KINDS: Final = {kind.value: kind for kind in FrameKind}


class RankLink:
    """A connected socket to one other rank (`peer`), whose host people call `name`.

    Sent by any thread that holds the owner's lock, read by one.
    """

    def __init__(self, sock: socket.socket, peer: int, name: str) -> None:
        sock.settimeout(0)
        self.sock = sock
        self.peer = peer
        self.name = name
        self._read = bytearray()
        self._unsent = bytearray()

    def __str__(self) -> str:
        return f"rank {self.peer} ({self.name})"

    @property
    def waits(self) -> bool:
        """True if something is left to send."""
        return bool(self._unsent)

    def send(self, kind: FrameKind, data: Mapping[str, Any]) -> None:
        """Send a frame, or as much of it as the system takes now; LinkError.

        ValueError where it is too long.
        """
        self._unsent += frame(kind, data)
        if len(self._unsent) > _MOST_WAITING:
            raise LinkError("reads nothing")
        self.flush()

    def flush(self) -> None:
        """Send on; what the system does not take stays for later. LinkError."""
        while self._unsent:
            try:
                sent = self.sock.send(memoryview(self._unsent)[:_PIECE])
            except BlockingIOError:
                return
            except OSError as error:
                raise LinkError("is gone") from error
            del self._unsent[:sent]

    def received(self) -> Iterator[tuple[FrameKind, dict[str, Any]]]:
        """The frames that have come; LinkError where the other end is gone or talks nonsense."""
        with suppress(BlockingIOError):
            self._read += self._piece()
        while len(self._read) >= _HEADER:
            end = _HEADER + int.from_bytes(self._read[1:_HEADER], "big")
            kind = _KINDS.get(bytes(self._read[:1]))
            if kind is None:
                raise LinkError("said what is no word of ours")
            if len(self._read) < end:
                return
            body = bytes(self._read[_HEADER:end])
            del self._read[:end]
            yield kind, _object(body)

    def _piece(self) -> bytes:
        try:
            piece = self.sock.recv(_PIECE)
        except BlockingIOError:
            raise
        except OSError as error:
            raise LinkError("is gone") from error
        if not piece:
            raise LinkError("is gone")
        return piece

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()


def frame(kind: FrameKind, data: Mapping[str, Any]) -> bytes:
    """A frame as bytes; ValueError where it is too long."""
    body = json.dumps(data, separators=(",", ":")).encode("ascii")
    if len(body) > MOST_BYTES:
        raise ValueError(f"a word of {len(body)} bytes is too long; at most {MOST_BYTES} are sent")
    return kind.value + len(body).to_bytes(_HEADER - 1, "big") + body


def _object(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise LinkError("said what is no word of ours")
    return data


def admit(sock: socket.socket, secret: bytes, seconds: float) -> None:
    """Rank 0's side of the proof, by challenge and answer both ways; LinkError in so many seconds.

    Nobody who does not know the secret learns more than that somebody listens here.
    """
    line = _Handshake(sock, seconds)
    mine = secrets.token_bytes(_NONCE)
    line.send(_GREETING + mine)
    theirs = line.read(_NONCE)
    if not hmac.compare_digest(line.read(_NONCE), _digest(secret, b"rank", mine, theirs)):
        raise LinkError("came with another secret")
    line.send(_digest(secret, b"head", mine, theirs))


def introduce(sock: socket.socket, secret: bytes, seconds: float) -> None:
    """Another rank's side of the same."""
    line = _Handshake(sock, seconds)
    if line.read(len(_GREETING)) != _GREETING:
        raise LinkError("speaks another protocol")
    theirs, mine = line.read(_NONCE), secrets.token_bytes(_NONCE)
    line.send(mine + _digest(secret, b"rank", theirs, mine))
    try:
        answer = line.read(_NONCE)
    except LinkError as error:
        raise LinkError("refused this rank's secret") from error
    if not hmac.compare_digest(answer, _digest(secret, b"head", theirs, mine)):
        raise LinkError("has another secret")


def check_secret(secret: bytes) -> None:
    """ValueError where a secret could be guessed."""
    if len(secret) < _LEAST_SECRET:
        raise ValueError(
            f"the secret has {len(secret)} bytes; give {_LEAST_SECRET} random ones or more"
        )


def _digest(secret: bytes, role: bytes, head: bytes, rank: bytes) -> bytes:
    """The proof of the secret; each side has its role, so that none is told its own words."""
    return hmac.digest(secret, _GREETING + role + head + rank, "sha256")


class _Handshake:
    """A socket while the other end is nobody yet: few bytes are read, until a deadline."""

    def __init__(
        self, sock: socket.socket, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sock = sock
        self._clock = clock
        self._until = clock() + seconds

    def send(self, data: bytes) -> None:
        self._sock.settimeout(self._left())
        try:
            self._sock.sendall(data)
        except OSError as error:
            raise LinkError("is gone") from error

    def read(self, length: int) -> bytes:
        """Exactly so many bytes."""
        data = b""
        while len(data) < length:
            self._sock.settimeout(self._left())
            try:
                piece = self._sock.recv(length - len(data))
            except OSError as error:
                raise LinkError("is gone, or said too little in time") from error
            if not piece:
                raise LinkError("is gone")
            data += piece
        return data

    def _left(self) -> float:
        left = self._until - self._clock()
        if left <= 0:
            raise LinkError("said too little in time")
        return left
