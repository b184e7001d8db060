"""Requests and events as JSON and back, so that an engine can live in another process.

Only the classes that are listed here are made from JSON, with the checks that they always make.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..chat.asked import Asked
from ..chat.generated import Generated, InvalidCall, ToolCall
from ..chat.messages import Message
from ..models.kv_settings import KVSettings
from .events import (
    Begun,
    CallArguments,
    CallName,
    Event,
    Finished,
    Loading,
    Logprob,
    Misfit,
    Progress,
    ReasoningDelta,
    Reuse,
    TextDelta,
    Timings,
    TokenLogprobs,
    Usage,
)
from .request import GenerationRequest, Sampling

_CLASSES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        Asked,
        Begun,
        CallArguments,
        CallName,
        Finished,
        Generated,
        GenerationRequest,
        InvalidCall,
        KVSettings,
        Loading,
        Logprob,
        Message,
        Misfit,
        Progress,
        ReasoningDelta,
        Reuse,
        Sampling,
        TextDelta,
        Timings,
        TokenLogprobs,
        ToolCall,
        Usage,
    )
}


def to_json(value: GenerationRequest | Event) -> dict[str, Any]:
    """Plain data for `json.dumps`; TypeError for an application's value that is not JSON."""
    data: dict[str, Any] = _plain(value)
    return data


def from_json(data: Mapping[str, Any]) -> Any:
    """The request or event that `to_json` was given; ValueError for anything else."""
    try:
        return _made({"is": data["is"], "of": data["of"]})
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"this is no request or event of ours ({type(error).__name__})") from None


def survives(data: Any) -> bool:
    """True if JSON gives these data back unchanged: an application may put anything in."""
    try:
        return _is_json(data)
    except RecursionError:
        return False


def _is_json(data: Any) -> bool:
    if type(data) is dict:
        return all(type(key) is str and _is_json(value) for key, value in data.items())
    if type(data) is list:
        return all(map(_is_json, data))
    return data is None or type(data) in (str, int, float, bool)


def _plain(value: Any) -> Any:
    name = type(value).__name__
    if _CLASSES.get(name) is type(value):
        names = _fields(type(value))
        return {"is": name, "of": {field: _plain(getattr(value, field)) for field in names}}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return {"is": "", "of": dict(value)}  # an application's own JSON, as it is
    return value


def _made(data: Any) -> Any:
    if isinstance(data, list):
        return tuple(_made(part) for part in data)
    if not isinstance(data, Mapping):
        return data
    name, fields = data["is"], data["of"]
    if not name:
        return dict(fields)
    if name not in _CLASSES:
        raise ValueError(f"{str(name)[:40]!r} is no request or event of ours")
    return _CLASSES[name](**{field: _made(part) for field, part in fields.items()})


def _fields(kind: Any) -> tuple[str, ...]:
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    names: tuple[str, ...] = kind._fields
    return names
