"""Measurements of a model's self-test: plain data, a value for each of its parts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Apart:
    """The distance of two runs of one prompt: of logits at most, and whether answers are equal.

    `same_bits`: the logits behind the prompt are equal bit for bit.
    """

    logits: float
    same_bits: bool
    same_tokens: bool


@dataclass(frozen=True, slots=True)
class Speeds:
    """A model's speeds in tokens a second, over a prompt of so many tokens.

    `dtype` is that of its logits, and `finite` whether any of them is a number.
    """

    dtype: str
    prompt: int
    prefill: float
    decode: float
    finite: bool


@dataclass(frozen=True, slots=True)
class WarmBesideCold:
    """A prompt of which `cached` tokens came from memory, beside prompts that were all computed.

    In the same chunks nothing may differ: `again` is a cold run beside another then, asked where
    something did. In one go, and in `other_chunks`, matrices have other sizes, so that a device
    may round otherwise: `most` is how much of that this model's own runs explain, and `bound` what
    rounding in its dtype explains of any model.
    """

    prompt: int
    cached: int
    same_chunks: Apart
    again: Apart | None
    one_go: Apart
    other_chunks: Apart
    most: float
    bound: float


@dataclass(frozen=True, slots=True)
class RestoreBesideMemory:
    """The same tokens read from the disk, beside what memory holds, and beside computing them."""

    tokens: int
    nbytes: int
    seconds: float
    computed_seconds: float
    same_rows: bool
    apart: Apart


@dataclass(frozen=True, slots=True)
class BatchBesideAlone:
    """Answers that took their steps together beside each alone; `why` where they never do."""

    rows: int
    apart: Apart
    most: float
    why: str = ""


@dataclass(frozen=True, slots=True)
class NotFound:
    """A path that was not found again: so many tokens of those stored, and why no more."""

    part: str
    cached: int
    stored: int
    why: str


@dataclass(frozen=True, slots=True)
class NotKept:
    """A model of which the cache keeps nothing, and why."""

    why: str


@dataclass(frozen=True, slots=True)
class NotInTime:
    """A part that was not begun, since the time was over."""

    part: str


Measurement = (
    Speeds
    | WarmBesideCold
    | RestoreBesideMemory
    | BatchBesideAlone
    | NotFound
    | NotKept
    | NotInTime
)
