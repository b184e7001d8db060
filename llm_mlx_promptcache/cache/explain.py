"""Reasons why a prompt hit the cache as far as it did and no further, and counts of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Reason = Literal[
    "whole",
    "cold",
    "diverged",
    "evicted",
    "checkpoint",
    "lent",
    "unreadable",
    "locked",
    "writing",
    "slow",
    "ranks",
    "namespace",
    "layers",
    "changed",
    "off",
]

_TEXT: dict[Reason, str] = {
    "whole": "everything but the last token was cached",
    "cold": "no cached prompt starts like this",
    "diverged": "no cached prompt goes on like this after token {position}",
    "evicted": "the tokens cached after token {position} were evicted",
    "checkpoint": "token {position} is the last at which this model's layers can resume",
    "lent": (
        "the tokens cached after token {position} moved to another request, or were lost with it"
    ),
    "unreadable": "the tokens cached after token {position} could not be read",
    "locked": "another process kept the disk cache locked, so it was not searched after token"
    " {position}",
    "writing": "the tokens cached after token {position} are still on their way to the disk",
    "slow": "the disk is too slow: the tokens after token {position} are computed sooner than read",
    "ranks": "another rank holds less: all of them can go on from token {position}",
    "namespace": "another namespace holds the first {position} tokens; this one does not",
    "layers": "{detail}",
    "changed": "{detail}",
    "off": "the cache is switched off",
}


class Why(NamedTuple):
    """The reason why no more was reused, and the token from which on.

    If paths part, `wanted` is the prompt's next id and `stored` are those that are kept there.
    """

    reason: Reason
    position: int = 0
    detail: str = ""
    wanted: int | None = None
    stored: tuple[int, ...] = ()

    def __str__(self) -> str:
        # Ids are text to anyone with the tokenizer, so they are in no message (law 12).
        return _TEXT[self.reason].format(position=self.position, detail=self.detail)


@dataclass
class Counters:
    """Counts of fetches: each is a hit, whole or in part, or a miss.

    `tokens_ahead` were prefilled before anybody asked, and are none of these.
    """

    hits: int = 0
    misses: int = 0
    tokens_reused: int = 0
    tokens_prefilled: int = 0
    tokens_ahead: int = 0
    misses_by_reason: dict[str, int] = field(default_factory=dict)

    def count(self, tokens: int, cached: int, why: Why) -> None:
        """Count one fetch of `tokens` tokens, `cached` of them found."""
        self.tokens_reused += cached
        self.tokens_prefilled += tokens - cached
        if cached:
            self.hits += 1
        else:
            self.misses += 1
            found = self.misses_by_reason
            found[why.reason] = found.get(why.reason, 0) + 1

    def uncount(self, tokens: int, cached: int, why: Why) -> None:
        """A fetch that was counted, and came to nothing."""
        self.tokens_reused -= cached
        self.tokens_prefilled -= tokens - cached
        if cached:
            self.hits -= 1
        else:
            self.misses -= 1
            self.misses_by_reason[why.reason] -= 1
