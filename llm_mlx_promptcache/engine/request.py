"""What an engine is asked and what it answers: plain data, no tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ..chat.messages import Message

DEFAULT_MAX_TOKENS = 1024

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 takes the likeliest. ValueError when off.

    Penalties look at the last `penalty_window` tokens of prompt and answer; `logit_bias` holds
    (token id, amount) pairs.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 256
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        for name, low, high in _LIMITS:
            value = getattr(self, name)
            if not low <= value <= high:  # also refuses what is not a number
                raise ValueError(f"{name} is {value}; give a number from {low:g} to {high:g}")
        if self.repetition_penalty <= 0:
            raise ValueError("repetition_penalty is 0; give a number over 0 (1: off)")

    @property
    def has_penalties(self) -> bool:
        """Whether recent tokens matter."""
        off = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return off != (1.0, 0.0, 0.0)


_LIMITS = (
    ("temperature", 0, 100),
    ("top_p", 0, 1),
    ("top_k", 0, 1 << 31),
    ("min_p", 0, 1),
    ("xtc_probability", 0, 1),
    ("xtc_threshold", 0, 1),
    ("repetition_penalty", 0, 100),
    ("presence_penalty", -100, 100),
    ("frequency_penalty", -100, 100),
    ("penalty_window", 0, 1 << 20),
)


@dataclass(frozen=True)
class GenerationRequest:
    """One answer asked for: a conversation that does not end with an assistant's message."""

    messages: tuple[Message, ...]
    max_tokens: int = DEFAULT_MAX_TOKENS
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    use_cache: bool = True
    on_disk: bool = True
    salt: str = ""

    def __post_init__(self) -> None:
        if not all(self.stop):
            raise ValueError("stop holds an empty string; give strings of one character or more")
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
    """The end of an answer: its exact tokens, stop token included, and what it took.

    Where a stop string ended it, `ids` are those of the text before, or none where they part
    inside a token: a replay must say what was shown.
    """

    ids: tuple[int, ...]
    text: str
    reason: FinishReason
    usage: Usage
    timings: Timings
    why: str
    fingerprint: str


Event = Progress | TextDelta | Finished
