"""The options of `llm -m mlx-cached -o NAME VALUE`, and the sampling that they mean."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import llm
from pydantic import AfterValidator, Field, ValidationError, field_validator

from ..engine.request import DEFAULT_MAX_TOKENS, Sampling

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_KV_BITS = (0, 2, 3, 4, 6, 8)
# How a JSON list of strings begins. A stop string may begin with a bracket too: "[END]".
_LIST = re.compile(r"\s*\[\s*\"")


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"it is {value}, and has to be a finite number")
    return value


_Number = Annotated[float, AfterValidator(_finite)]


class MlxCachedOptions(llm.Options):
    """The options that a user can set; the descriptions are the help text.

    Every default is None, "not set": llm applies a user's own defaults (`llm models options set`)
    only to those, and an earlier turn's setting stays in force only where this one has none.
    """

    temperature: _Number | None = Field(
        None, ge=0, le=100, description="Sampling temperature; 0, the default, is greedy."
    )
    top_p: _Number | None = Field(
        None,
        ge=0,
        le=1,
        description="Nucleus sampling: keep the top tokens up to this total probability.",
    )
    top_k: int | None = Field(
        None, ge=0, description="Keep this many of the most likely tokens; 0: all."
    )
    min_p: _Number | None = Field(
        None,
        ge=0,
        le=1,
        description="Drop tokens below this share of the most likely token's probability.",
    )
    min_tokens_to_keep: int | None = Field(
        None, ge=1, description="The fewest tokens that min_p may leave; default: 1."
    )
    xtc_probability: _Number | None = Field(
        None,
        ge=0,
        le=1,
        description="Probability of dropping all likely tokens but the least likely one (XTC).",
    )
    xtc_threshold: _Number | None = Field(
        None,
        ge=0,
        le=1,
        description="Probability above which XTC counts a token as likely; default: 0.1.",
    )
    repetition_penalty: _Number | None = Field(
        None, gt=0, le=100, description="Divides the logits of recent tokens; 1: off."
    )
    presence_penalty: _Number | None = Field(
        None, ge=-100, le=100, description="Subtracted from the logits of recent tokens."
    )
    frequency_penalty: _Number | None = Field(
        None,
        ge=-100,
        le=100,
        description="Subtracted from a token's logit for each of its recent occurrences.",
    )
    max_tokens: int | None = Field(
        None,
        ge=1,
        description="Maximum number of tokens to generate; default: the rest of the context, up to"
        f" {DEFAULT_MAX_TOKENS}.",
    )
    unlimited: bool | None = Field(
        None, description="Ignore max_tokens: the answer may fill the context."
    )
    prefill: str | None = Field(
        None,
        description="Beginning of the answer to a user's message; the model continues it.",
    )
    stop: list[str] | None = Field(None, description="A stop string, or a JSON list of them.")
    seed: int | None = Field(None, description="Random seed; makes sampling repeatable.")
    thinking: bool | None = Field(
        None,
        description="Turn reasoning on or off; default: the model's own.",
    )
    json_object: bool | None = Field(None, description="Force a JSON object.")
    tool_choice: str | None = Field(
        None,
        description="Tools for a user's message: auto may call them, required (or any) must, none"
        " must not; or the name of the tool to call. After a tool's result, anything but none"
        " means auto.",
    )
    kv_bits: int | None = Field(
        None,
        description="Quantise the KV cache to 8, 6, 4, 3 or 2 bits; 0: not at all.",
    )
    cache: bool | None = Field(
        None, description="Use the prompt cache; false: compute everything again."
    )
    cache_salt: str | None = Field(
        None, description="Share cached prefixes only with prompts of the same salt."
    )

    drafts: bool | None = Field(
        None,
        description="Guess several tokens at a time from earlier text and check them in one pass;"
        " false: one at a time. The answer is the same.",
    )

    @field_validator("stop", mode="before")
    @classmethod
    def _stops(cls, value: Any) -> Any:
        """One stop string, or a JSON list of them: llm passes every option as a string."""
        if isinstance(value, str):
            value = _listed(value)
        # Checked here: llm's command can't report the place of an error inside a list.
        if value is not None and not (
            isinstance(value, list) and all(isinstance(item, str) and item for item in value)
        ):
            raise ValueError("give a string, or a JSON list of strings, none of them empty")
        return value

    @field_validator("tool_choice", mode="before")
    @classmethod
    def _choice(cls, value: Any) -> Any:
        """A word or a name; servers pass on OpenAI's object, which names a function."""
        if isinstance(value, Mapping) and value.get("type") == "function":
            function = value.get("function")
            value = (isinstance(function, Mapping) and function.get("name")) or ""
        if value is not None and not (isinstance(value, str) and value):
            raise ValueError("give auto, required, none, or the name of a tool")
        return value

    @field_validator("kv_bits")
    @classmethod
    def _bits(cls, value: int | None) -> int | None:
        if value is not None and value not in _KV_BITS:
            raise ValueError(f"give one of {', '.join(map(str, _KV_BITS))}")
        return value

    @property
    def most_tokens(self) -> int | None:
        """The most tokens that the answer may have; None: to the context's end."""
        if self.unlimited:
            return None
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    def sampling(self) -> Sampling:
        """The sampling: the options given, over the engine's defaults."""
        said = {name: getattr(self, name) for name in _SAMPLING}
        return Sampling(**{name: value for name, value in said.items() if value is not None})


def _listed(value: str) -> list[Any]:
    """A JSON list as one, or one string; ValueError where it begins as a list and is none."""
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        if _LIST.match(value) is None:
            return [value]
        told = error.msg if isinstance(error, json.JSONDecodeError) else "too deep"
        raise ValueError(
            f"it begins as a JSON list and is none ({told}); give a string, or a JSON list of"
            " strings"
        ) from None
    return found if isinstance(found, list) else [value]


_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "min_tokens_to_keep",
    "xtc_probability",
    "xtc_threshold",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)


def checked_options(said: Mapping[str, Any]) -> MlxCachedOptions:
    """These options; ValueError names unknown ones, and values that are not allowed."""
    try:
        return MlxCachedOptions(**said)
    except ValidationError as error:
        raise ValueError("; ".join(map(_told, error.errors()))) from error


def _told(error: ErrorDetails) -> str:
    """An option and what is wrong with its value, in words that are not pydantic's."""
    return f"{error['loc'][0]}: {error['msg'].removeprefix('Value error, ')}"


def set_options(model_id: str) -> dict[str, Any]:
    """The options set with `llm models options set`; ValueError if they can't be used."""
    from llm.cli import get_model_options

    said: dict[str, Any] = get_model_options(model_id)
    try:
        checked_options(said)
    except ValueError as error:
        raise ValueError(
            f"the options set for {model_id} can't be used ({error});"
            " llm models options clear resets them"
        ) from error
    return said
