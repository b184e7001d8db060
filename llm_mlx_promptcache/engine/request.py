"""What an engine is asked and what it answers: plain data, no tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ..chat.messages import Message

DEFAULT_MAX_TOKENS = 1024

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 takes the likeliest. ValueError when off."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in (("temperature", 0, 100), ("top_p", 0, 1), ("min_p", 0, 1)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; give a number from {low} to {high}")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; give 0 (off) or more")


@dataclass(frozen=True)
class GenerationRequest:
    """One answer asked for: a conversation that does not end with an assistant's message."""

    messages: tuple[Message, ...]
    max_tokens: int = DEFAULT_MAX_TOKENS
    sampling: Sampling = field(default_factory=Sampling)
    use_cache: bool = True
    salt: str = ""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; give 1 or more")


class Usage(NamedTuple):
    """Tokens of the prompt, how many of them came from the cache or were run, and the answer's."""

    prompt: int
    cached: int
    prefilled: int
    generated: int


class Timings(NamedTuple):
    """Seconds: loading the model, from the prompt to its first token, and decoding."""

    load: float
    first_token: float
    decode: float


class Progress(NamedTuple):
    """Tokens of the prompt that are done, those from the cache included."""

    done: int
    total: int
    cached: int


class TextDelta(NamedTuple):
    """The next piece of the answer."""

    text: str


class Finished(NamedTuple):
    """The end of an answer: its exact tokens, stop token included, and what it took."""

    ids: tuple[int, ...]
    text: str
    reason: FinishReason
    usage: Usage
    timings: Timings
    why: str
    fingerprint: str


Event = Progress | TextDelta | Finished
