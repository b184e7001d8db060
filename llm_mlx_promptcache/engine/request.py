"""Requests to an engine: plain data, no tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from ..chat.generated import nothing
from ..chat.messages import Message, check_continued
from ..models.kv_settings import KVSettings, check_kv

# The limit of an answer without one of its own; less where the context leaves less.
DEFAULT_MAX_TOKENS = 8192

ToolChoice = Literal["auto", "any", "none"]
# OpenAI's word beside our own.
_CHOICES: dict[str, ToolChoice] = {"auto": "auto", "any": "any", "none": "none", "required": "any"}


class Choice(NamedTuple):
    """A choice about tools: whether they are called, and the name of the one that must be."""

    how: ToolChoice
    tool: str = ""


def choice_named(word: str, names: Sequence[str]) -> Choice:
    """The choice that a word or a tool's name means beside tools of these names; ValueError."""
    if word in names:
        return Choice("any", word)
    if word in _CHOICES:
        return Choice(_CHOICES[word])
    raise ValueError(
        f"tool_choice is {word[:60]!r}; use auto, any (or required), none, or the name of a tool"
        f" ({', '.join(names) or 'none is given'})"
    )


@dataclass(frozen=True)
class Sampling:
    """The choice of the next token; temperature 0 takes the likeliest. ValueError for bad values.

    `min_p` leaves at least `min_tokens_to_keep` tokens. Penalties look at the last
    `penalty_window` tokens of prompt and answer; `logit_bias` holds (token id, amount) pairs.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    min_tokens_to_keep: int = 1
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 256
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        for token, amount in self.logit_bias:
            # Minus infinity forbids a token; NaN, or more than a half-precision number holds,
            # would make nonsense of all the others.
            if not isinstance(amount, (int, float)) or not (
                -_MOST_BIAS <= amount <= _MOST_BIAS or amount == -math.inf
            ):
                raise ValueError(
                    f"logit_bias is {amount} for token {token}; give a number from"
                    f" -{_MOST_BIAS} to {_MOST_BIAS}, or -inf to forbid it"
                )
        for name, low, high in _LIMITS:
            value = getattr(self, name)
            if not low <= value <= high:  # also refuses what is not a number
                raise ValueError(f"{name} is {value}; give a number from {low:g} to {high:g}")
        if self.repetition_penalty <= 0:
            raise ValueError("repetition_penalty is 0; give a number over 0 (1: off)")

    @property
    def has_penalties(self) -> bool:
        """True if recent tokens matter."""
        off = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return off != (1.0, 0.0, 0.0)


_MOST_BIAS = 10_000
_LIMITS = (
    ("temperature", 0, 100),
    ("top_p", 0, 1),
    ("top_k", 0, 1 << 31),
    ("min_p", 0, 1),
    ("min_tokens_to_keep", 1, 1 << 31),
    ("xtc_probability", 0, 1),
    ("xtc_threshold", 0, 1),
    ("repetition_penalty", 0, 100),
    ("presence_penalty", -100, 100),
    ("frequency_penalty", -100, 100),
    ("penalty_window", 0, 1 << 20),
)


@dataclass(frozen=True)
class GenerationRequest:
    """One answer asked for: the next one, or with `continue_final` the last message's rest.

    `tools` are in OpenAI's form, and at most `max_calls` are called at once; `tool` names the one
    that must be called. `max_tokens` None: to the context's end. `schema` (JSON Schema),
    `json_object` and `regex` constrain the answer; beside tools, a schema leaves the choice between
    a call and a document. `max_string` is the most characters of a string in a document or a forced
    call whose schema sets no limit, None as many as `max_tokens` allows: small models may never end
    one. `thinking` asks a template to let the model reason or not. `logprobs` is the number of
    alternatives reported for each token. `cache_salt` keeps applications apart. Fields that
    `if_possible` names cause a note, not an error, where the model can't follow them. With `drafts`
    earlier text is tried as what comes next, several tokens a pass; no token changes by it. With
    `warm` nothing is answered: the conversation's stable beginning is prefilled and kept, and with
    `pin` never evicted. With `look` nothing is computed either: only the reuse is reported.
    """

    messages: tuple[Message, ...]
    max_tokens: int | None = DEFAULT_MAX_TOKENS
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    use_cache: bool = True
    on_disk: bool = True
    cache_salt: str = ""
    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    tool_choice: ToolChoice = "auto"
    tool: str = ""
    max_calls: int = 8
    schema: Mapping[str, Any] | None = field(default=None, hash=False)
    json_object: bool = False
    regex: str = ""
    max_string: int | None = None
    thinking: bool | None = None
    template_arguments: Mapping[str, Any] = field(default_factory=nothing, hash=False)
    kv: KVSettings | None = None
    logprobs: int | None = None
    continue_final: bool = False
    if_possible: tuple[Literal["thinking"], ...] = ()
    drafts: bool = True
    warm: bool = False
    pin: bool = False
    look: bool = False

    def __post_init__(self) -> None:
        if not all(self.stop):
            raise ValueError("stop holds an empty string; give strings of one character or more")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; give 1 or more, or None")
        if self.tool_choice not in ("auto", "any", "none"):
            raise ValueError(f"tool_choice is {self.tool_choice!r}; use auto, any or none")
        if self.max_string is not None and self.max_string < 1:
            raise ValueError(f"max_string is {self.max_string}; give 1 or more, or None")
        if self.max_calls < 1:
            raise ValueError(f"max_calls is {self.max_calls}; give 1 or more")
        if (self.tool or self.tool_choice == "any") and not self.tools:
            raise ValueError("a tool must be called, and tools is empty; give tools")
        asked = {"schema": self.schema is not None, "json_object": self.json_object}
        wanted = [name for name, is_asked in asked.items() if is_asked] + ["regex"] * bool(
            self.regex
        )
        if len(wanted) > 1:
            raise ValueError(f"{' and '.join(wanted)} can't be combined; give one of them")
        if self.regex and self.tools:
            raise ValueError("regex and tools can't be combined; give one of them")
        if self.logprobs is not None and not 0 <= self.logprobs <= _MOST_LOGPROBS:
            raise ValueError(f"logprobs is {self.logprobs}; give 0 to {_MOST_LOGPROBS}")
        if self.continue_final:
            self._check_continued(wanted)
        if self.pin and not self.warm:
            raise ValueError("pin is set without warm; only a beginning that is warmed is pinned")
        if self.look and self.warm:
            raise ValueError("look and warm can't be combined; give one of them")
        if self.kv is not None:
            check_kv(self.kv)

    def _check_continued(self, wanted: list[str]) -> None:
        """ValueError where an answer that has begun can't be held to what is wanted."""
        forced = ["a forced call"] * bool(self.tool or self.tool_choice == "any")
        if beside := [*wanted, *forced, *["warm"] * self.warm]:
            raise ValueError(
                f"continue_final and {beside[0]} can't be combined: a grammar begins where an"
                " answer does; leave one of them out"
            )
        check_continued(self.messages)


def warming(messages: Iterable[Message], **asked: Any) -> GenerationRequest:
    """The request that prefills and pins the common start of conversations with this beginning."""
    return GenerationRequest(tuple(messages), warm=True, pin=True, **asked)


_MOST_LOGPROBS = 20
