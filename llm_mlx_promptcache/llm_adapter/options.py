"""The options of `llm -m mlx-cached -o NAME VALUE`, and what a prompt is sampled with."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, get_args

import llm
from pydantic import Field, field_validator

from ..engine.request import DEFAULT_MAX_TOKENS, Sampling, ToolChoice

_KV_BITS = (0, 2, 3, 4, 6, 8)


class MlxCachedOptions(llm.Options):
    """What a user can set; the descriptions are the help text.

    Every default is None, "not said": llm lays a user's own defaults (`llm models options set`)
    only over those, and what an earlier turn said holds on only where this one is silent.
    """

    temperature: float | None = Field(
        None, ge=0, le=100, description="Randomness; 0, the default, takes the likeliest token."
    )
    top_p: float | None = Field(
        None, ge=0, le=1, description="Keep the likeliest tokens of this much probability."
    )
    top_k: int | None = Field(
        None, ge=0, description="Keep this many of the likeliest tokens; 0: all."
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="Drop tokens less likely than this share of the likeliest."
    )
    xtc_probability: float | None = Field(
        None, ge=0, le=1, description="How often to drop all but the least likely of likely tokens."
    )
    xtc_threshold: float | None = Field(
        None, ge=0, le=1, description="What is likely enough for xtc_probability; 0.1 if not said."
    )
    repetition_penalty: float | None = Field(
        None, gt=0, le=100, description="Divides the logits of recent tokens; 1: off."
    )
    presence_penalty: float | None = Field(
        None, ge=-100, le=100, description="Taken off the logits of tokens that came recently."
    )
    frequency_penalty: float | None = Field(
        None, ge=-100, le=100, description="Taken off as often as a token came recently."
    )
    max_tokens: int | None = Field(
        None,
        ge=1,
        description=f"The answer ends after this many tokens; {DEFAULT_MAX_TOKENS} if not said.",
    )
    stop: list[str] | None = Field(
        None, description="The answer ends before this string, or any of a JSON list of strings."
    )
    seed: int | None = Field(None, description="Makes an answer with a temperature repeatable.")
    thinking: bool | None = Field(
        None,
        description="Let a model that can reason do so first, or not; its own habit if not said.",
    )
    json_object: bool | None = Field(None, description="The answer is a JSON object, surely.")
    tool_choice: str | None = Field(
        None,
        description="Whether a user's message may be answered with calls of tools (auto), must be"
        " (any) or must not be (none); a tool's result always may.",
    )
    kv_bits: int | None = Field(
        None,
        description="Keep the cache in 8, 6, 4, 3 or 2 bits a number; 0: as the model has it.",
    )
    cache: bool | None = Field(
        None, description="Reuse and keep what was computed; false computes all anew."
    )
    cache_salt: str | None = Field(
        None, description="Share what was computed only with prompts of the same salt."
    )

    @field_validator("stop", mode="before")
    @classmethod
    def _stops(cls, value: Any) -> Any:
        """Every option comes as a string from llm: one stop string, or a JSON list of them."""
        if isinstance(value, str):
            found: Any = None
            if value.lstrip().startswith("["):
                with suppress(ValueError):
                    found = json.loads(value)
            value = found if isinstance(found, list) else [value]
        # Checked here: of an error inside a list llm's command can't tell where it is.
        if value is not None and not (
            isinstance(value, list) and all(isinstance(item, str) and item for item in value)
        ):
            raise ValueError("give a string, or a JSON list of strings, none of them empty")
        return value

    @field_validator("tool_choice")
    @classmethod
    def _choice(cls, value: str | None) -> str | None:
        if value is not None and value not in get_args(ToolChoice):
            raise ValueError(f"give one of {', '.join(get_args(ToolChoice))}")
        return value

    @field_validator("kv_bits")
    @classmethod
    def _bits(cls, value: int | None) -> int | None:
        if value is not None and value not in _KV_BITS:
            raise ValueError(f"give one of {', '.join(map(str, _KV_BITS))}")
        return value

    def sampling(self) -> Sampling:
        """How tokens are chosen: what was said, over the engine's own defaults."""
        said = {name: getattr(self, name) for name in _SAMPLING}
        return Sampling(**{name: value for name, value in said.items() if value is not None})


_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "xtc_probability",
    "xtc_threshold",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)
