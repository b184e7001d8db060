"""Other chat models' words for the settings of this one; unknown ones are refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any, Final

from .foreign_words import WHY_NOT

# The names of ChatOpenAI, ChatOllama, ChatAnthropic and others for the same.
_OURS = {
    "model_name": "model",
    "max_completion_tokens": "max_tokens",
    "num_predict": "max_tokens",
    "stop_sequences": "stop",
    "reasoning": "thinking",
    "repeat_penalty": "repetition_penalty",
}
# A server's. LangChain's own tests give them to any model; without a server they mean nothing.
_OF_SERVERS = frozenset(["timeout", "max_retries", "api_key", "base_url"])
# The likeness at which a word counts as a typo of another: "num_ctx" is not one of "num_predict".
_NEAR: Final = 0.8


def in_our_words(given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Settings under this model's names; ValueError names an unknown one, and says why."""
    made: dict[str, Any] = {}
    for word, value in given.items():
        if word in _OF_SERVERS and word not in known:
            continue
        name = _OURS.get(word, word)
        if name not in known:
            raise ValueError(unknown(word, known))
        if name in made and made[name] != _meant(word, value):
            raise ValueError(
                f"{word} is given, and means {name}, which is given too; give one of them"
            )
        made[name] = _meant(word, value)
    return made


def warn_of_cache(given: Mapping[str, Any]) -> None:
    """Warn a user who switches LangChain's cache off that this one still keeps prefixes."""
    if given.get("cache") is False and "use_cache" not in given:
        warnings.warn(
            "cache=False is LangChain's cache of whole answers; prefixes of prompts are still"
            " kept, on the disk too: use_cache=False or on_disk=False switches that off, and"
            " use_cache=True this warning",
            stacklevel=2,
        )


def _meant(word: str, value: Any) -> Any:
    """The value as this model's setting has it."""
    if word == "num_predict" and isinstance(value, int) and value < 0:
        return None  # Ollama's word for an answer without a limit
    if word == "reasoning" and isinstance(value, str | Mapping):
        raise ValueError(
            f"reasoning is {str(value)[:60]!r}; give True or False. How much, only templates that"
            ' have a word for it know: template_arguments={"reasoning_effort": "high"}'
        )
    return value


def unknown(word: str, known: Collection[str]) -> str:
    """The reason why a word is no setting, in a line: its substitute, or a setting close to it."""
    if (why := WHY_NOT.get(word)) is not None:
        return f"{word!r} is no setting of ChatMLXCached: {why}"
    names = sorted(known)
    near = get_close_matches(word, [*names, *_OURS], n=1, cutoff=_NEAR)
    meant = f", and {_OURS.get(near[0], near[0])!r} is" if near else ""
    return f"{word!r} is no setting of ChatMLXCached{meant}; it has {', '.join(names)}"
