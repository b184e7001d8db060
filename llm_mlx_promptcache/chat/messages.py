"""One neutral form of messages, and the exact tokens that an answer was generated as."""

from __future__ import annotations

import base64
import sys
import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal, TypeGuard, get_args

Role = Literal["system", "developer", "user", "assistant", "tool"]

_ROLES: tuple[str, ...] = get_args(Role)
_VERSION = 1
_ID_BYTES = 4
_MAX_IDS = 2**20
_MAX_BYTES = _MAX_IDS * _ID_BYTES
_MAX_NAME = 512


@dataclass(frozen=True)
class Generated:
    """What an answer was before it became text, so that it can be replayed token by token.

    `ids` holds every generated token, the stop token included where there was one;
    `fingerprint` names tokenizer, template and model; `digest` is of the visible content.
    """

    # Tokens are text to whoever has the tokenizer, so no repr shows them.
    ids: tuple[int, ...] = field(repr=False)
    fingerprint: str
    digest: str = field(repr=False)

    @classmethod
    def of(cls, ids: Iterable[int], content: str, fingerprint: str) -> Generated:
        """The record of an answer that was generated as `ids` and shown as `content`."""
        return cls(tuple(ids), fingerprint, _digest(content))

    def matches(self, content: str, fingerprint: str) -> bool:
        """True where `content` is still what was shown, and the same model made it."""
        return self.fingerprint == fingerprint and self.digest == _digest(content)

    def to_json(self) -> dict[str, Any]:
        """Plain data that survives JSON, for a front end's own history."""
        packed = array("I", self.ids)
        if sys.byteorder == "big":
            packed.byteswap()
        ids = base64.b64encode(zlib.compress(packed.tobytes())).decode("ascii")
        return {"v": _VERSION, "ids": ids, "fp": self.fingerprint, "digest": self.digest}

    @classmethod
    def from_json(cls, obj: object) -> Generated | None:
        """What `to_json` gave; None, never an error, for anything foreign or damaged."""
        if not isinstance(obj, Mapping):
            return None
        version, fingerprint, digest = obj.get("v"), obj.get("fp"), obj.get("digest")
        if type(version) is not int or version != _VERSION:
            return None
        if not (_is_name(fingerprint) and _is_name(digest)):
            return None
        ids = _unpack(obj.get("ids"))
        return cls(tuple(ids), fingerprint, digest) if ids else None


@dataclass(frozen=True)
class Message:
    """One message of a conversation; `generated` where it is an answer of ours."""

    role: Role
    # A conversation's text is in no repr, so it is in no log or traceback either.
    content: str = field(repr=False)
    generated: Generated | None = field(default=None, repr=False)

    def to_template(self) -> dict[str, Any]:
        """The dict that chat templates read."""
        return {"role": self.role, "content": self.content}


def check_messages(messages: Sequence[Message]) -> None:
    """ValueError that names index and field where a conversation can't be answered."""
    if not messages:
        raise ValueError("messages is empty; give at least one user message")
    for index, message in enumerate(messages):
        _check_message(index, message)
    last = len(messages) - 1
    if messages[last].role == "assistant":
        raise ValueError(
            f"messages[{last}].role is 'assistant', and an answer can't be continued;"
            " end with a user or tool message"
        )
    users = [index for index, message in enumerate(messages) if message.role == "user"]
    if not users:
        raise ValueError(
            f"none of messages[0] to messages[{last}] has the role 'user'; give a user message"
        )
    if not any(messages[index].content.strip() for index in users):
        raise ValueError(f"messages[{users[-1]}].content is empty; give the user's text")


def _check_message(index: int, message: Message) -> None:
    if message.role not in _ROLES:
        raise ValueError(
            f"messages[{index}].role is {str(message.role)[:40]!r}; use one of {', '.join(_ROLES)}"
        )
    if not isinstance(message.content, str):
        kind = type(message.content).__name__
        raise ValueError(f"messages[{index}].content is a {kind}; give a str")
    try:
        message.content.encode()
    except UnicodeEncodeError as error:
        # `from None`: the error holds the whole text.
        raise ValueError(
            f"messages[{index}].content has half a surrogate pair at character {error.start};"
            " give valid Unicode"
        ) from None


def _digest(content: str) -> str:
    return blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _is_name(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= _MAX_NAME


def _unpack(packed: object) -> array[int] | None:
    """The ids in `packed`; None where it is no such thing or would unpack to too much."""
    if not isinstance(packed, str):
        return None
    unzip = zlib.decompressobj()
    try:
        raw = unzip.decompress(base64.b64decode(packed, validate=True), _MAX_BYTES)
    except (ValueError, zlib.error):
        return None
    if not unzip.eof or unzip.unused_data or len(raw) % _ID_BYTES:
        return None
    ids = array("I", raw)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids
