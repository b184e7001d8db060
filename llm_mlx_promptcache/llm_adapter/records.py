"""The record in an answer's part in llm's own log, from which the next turn goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from llm.parts import Message as LlmMessage

from ..chat.generated import Generated

METADATA = "mlx-cached"
_SETTINGS = "settings"


@dataclass(frozen=True)
class PromptSettings:
    """The settings that shaped a prompt beside its messages, which llm does not restore with `-c`.

    `model` is llm's name for it, `reference` the model itself. `tools` are names. `schema`
    constrains the end of a tool loop: llm passes it to the loop's first turn only.
    """

    model: str
    thinking: bool | None = None
    kv_bits: int = 0
    cache_salt: str = ""
    tools: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = field(default=None, repr=False, hash=False)
    reference: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data, without values that are defaults."""
        made: dict[str, Any] = {"model": self.model}
        for name in ("thinking", "kv_bits", "cache_salt", "tools", "schema", "reference"):
            value = getattr(self, name)
            if value is not None and value != type(self).__dataclass_fields__[name].default:
                made[name] = list(value) if isinstance(value, tuple) else value
        return made

    @classmethod
    def from_json(cls, obj: object) -> PromptSettings | None:
        """The settings that `to_json` gave; None, or the defaults, never an error, otherwise."""
        if not isinstance(obj, Mapping) or not isinstance(obj.get("model"), str):
            return None
        thinking, bits, salt = obj.get("thinking"), obj.get("kv_bits"), obj.get("cache_salt")
        tools, schema = obj.get("tools"), obj.get("schema")
        reference = obj.get("reference")
        names = tools if isinstance(tools, list) else []
        return cls(
            obj["model"],
            thinking if isinstance(thinking, bool) else None,
            bits if type(bits) is int else 0,
            salt if isinstance(salt, str) else "",
            tuple(name for name in names if isinstance(name, str)),
            schema if isinstance(schema, Mapping) else None,
            reference if isinstance(reference, str) else "",
        )


def to_metadata(generated: Generated, settings: PromptSettings) -> dict[str, Any]:
    """The `provider_metadata` of one part of an answer."""
    return {METADATA: {**generated.to_json(), _SETTINGS: settings.to_json()}}


def settings_metadata(settings: PromptSettings) -> dict[str, Any]:
    """The same for an answer whose exact tokens nobody knows."""
    return {METADATA: {_SETTINGS: settings.to_json()}}


def generated_of(message: LlmMessage) -> Generated | None:
    """The exact tokens of an answer of ours; None for everyone else's."""
    return Generated.from_json(_record(message))


def settings_of(message: LlmMessage) -> PromptSettings | None:
    """The settings behind an answer of ours; None for everyone else's."""
    record = _record(message)
    return PromptSettings.from_json(record.get(_SETTINGS)) if isinstance(record, Mapping) else None


def latest_settings(messages: Iterable[LlmMessage], model: str) -> PromptSettings | None:
    """The settings of the last answer of this very model in the conversation.

    The salt is the conversation's, so it is that of the last answer of any model of ours.
    """
    found = [kept for message in messages if (kept := settings_of(message)) is not None]
    if not found:
        return None
    own = next((kept for kept in reversed(found) if kept.model == model), PromptSettings(model))
    return replace(own, cache_salt=found[-1].cache_salt)


def latest_reference(messages: Iterable[LlmMessage]) -> str:
    """The model of ours that gave the conversation's last answer; "" where unknown."""
    found = [kept.reference for message in messages if (kept := settings_of(message)) is not None]
    return found[-1] if found else ""


def _record(message: LlmMessage) -> object:
    for part in message.parts if message.role == "assistant" else ():
        metadata = getattr(part, "provider_metadata", None)
        if isinstance(metadata, Mapping) and metadata.get(METADATA) is not None:
            return metadata[METADATA]
    return None
