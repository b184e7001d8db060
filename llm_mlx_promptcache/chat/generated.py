"""An answer before it became text: its exact tokens, and how its prompt was rendered."""

from __future__ import annotations

import base64
import json
import sys
import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, TypeGuard

from .asked import Asked

_NOTHING: Mapping[str, Any] = MappingProxyType({})

_VERSION = 1
_ID_BYTES = 4
MOST_IDS = 2**20
_MAX_BYTES = MOST_IDS * _ID_BYTES
_MAX_NAME = 512
_MAX_RENDERED = 2**16


def nothing() -> Mapping[str, Any]:
    """An empty mapping that nobody can write to."""
    return _NOTHING


@dataclass(frozen=True)
class ToolCall:
    """One call that an answer makes; its result refers to it by `id`."""

    name: str
    # Arguments are the conversation's text.
    arguments: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    id: str = field(default="", repr=False)

    def canonical(self) -> str:
        """Name and arguments in one form, whatever their keys' order; the id is left out."""
        return canonical_json([self.name, self.arguments])


@dataclass(frozen=True)
class InvalidCall:
    """A call that can't be made: of an unknown tool, or with arguments that can't be read.

    `text` is the model's text, `error` the reason, `id` the id that a result can refer to. For an
    unknown tool `arguments` are those it would have been called with, if they can be read.
    """

    name: str
    text: str = field(repr=False)
    error: str
    id: str = field(default="", repr=False)
    arguments: Mapping[str, Any] | None = field(default=None, repr=False, hash=False)


@dataclass(frozen=True)
class Generated:
    """An answer before it became text, so that it can be replayed token by token.

    `ids` holds every generated token, the stop token included if there was one; `fingerprint` names
    tokenizer, template and model; `digest` is of all that was shown of it; `rendered` is needed to
    render later prompts of the conversation (`Transcript.rendered`), `asked` describes its own
    prompt, if anything of it was kept.
    """

    # Tokens are text to anyone with the tokenizer, so no repr shows them.
    ids: tuple[int, ...] = field(repr=False)
    fingerprint: str
    digest: str = field(repr=False)
    rendered: Mapping[str, Any] = field(default_factory=nothing, repr=False, hash=False)
    asked: Asked | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        ids: Iterable[int],
        content: str,
        fingerprint: str,
        *,
        reasoning: str = "",
        tool_calls: Sequence[ToolCall] = (),
        rendered: Mapping[str, Any] = _NOTHING,
    ) -> Generated:
        """The record of an answer that was generated as `ids` and shown as these parts."""
        return cls(tuple(ids), fingerprint, _digest(content, reasoning, tool_calls), rendered)

    def matches(
        self,
        content: str,
        fingerprint: str,
        *,
        reasoning: str = "",
        tool_calls: Sequence[ToolCall] = (),
    ) -> bool:
        """True if these parts are still those that were shown, and the same model made them."""
        if self.fingerprint != fingerprint:
            return False
        return self.digest == _digest(content, reasoning, tool_calls)

    def to_json(self) -> dict[str, Any]:
        """Plain data that survives JSON, for a front end's own history."""
        packed = array("I", self.ids)
        if sys.byteorder == "big":
            packed.byteswap()
        ids = base64.b64encode(zlib.compress(packed.tobytes())).decode("ascii")
        made = {"v": _VERSION, "ids": ids, "fp": self.fingerprint, "digest": self.digest}
        rendered = {"rendered": dict(self.rendered)} if self.rendered else {}
        asked = {"asked": self.asked.to_json()} if self.asked is not None else {}
        return {**made, **rendered, **asked}

    @classmethod
    def from_json(cls, obj: object) -> Generated | None:
        """Read the output of `to_json`; None, never an error, for anything foreign or damaged."""
        if not isinstance(obj, Mapping):
            return None
        version, fingerprint, digest = obj.get("v"), obj.get("fp"), obj.get("digest")
        if type(version) is not int or version != _VERSION:
            return None
        if not (_is_name(fingerprint) and _is_name(digest)):
            return None
        ids = _unpack(obj.get("ids"))
        rendered = _read_rendered(obj.get("rendered"))
        # Without ids (a stop string split a token) it still tells how the prompt was rendered.
        if ids is None:
            return None
        return cls(tuple(ids), fingerprint, digest, rendered, Asked.from_json(obj.get("asked")))


def canonical_json(value: object) -> str:
    """One text for equal values, whatever the order of their keys."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=_plain
    )


def _plain(value: object) -> object:
    # Arguments may be any mapping; what else JSON has no form for is told apart by its text.
    return dict(value) if isinstance(value, Mapping) else str(value)


def _digest(content: str, reasoning: str, tool_calls: Sequence[ToolCall]) -> str:
    """The digest of the text alone if there is nothing else, as in records of version 1."""
    shown = blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16)
    if not reasoning and not tool_calls:
        return shown.hexdigest()
    parts = [content, reasoning, *(call.canonical() for call in tool_calls)]
    return blake2b(canonical_json(parts).encode(), digest_size=16, person=b"parts").hexdigest()


def _is_name(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= _MAX_NAME


def _read_rendered(value: object) -> Mapping[str, Any]:
    """The rendering's data; a damaged one costs reuse, never the record: the defaults apply."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return _NOTHING
    try:
        small = len(json.dumps(dict(value))) <= _MAX_RENDERED
    except (TypeError, ValueError, RecursionError):
        return _NOTHING
    return dict(value) if small and value else _NOTHING


def _unpack(packed: object) -> array[int] | None:
    """The ids in `packed`; None if it has another form or would unpack to too much."""
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
