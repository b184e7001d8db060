"""Why a prompt hit the cache as far as it did, and no further."""

from __future__ import annotations

from typing import Literal, NamedTuple

Reason = Literal["whole", "cold", "diverged", "checkpoint", "unreadable", "layers", "off"]

_TEXT: dict[Reason, str] = {
    "whole": "everything but the last token was cached",
    "cold": "nothing that starts like this was stored",
    "diverged": "no stored path goes on like this after token {position}",
    "checkpoint": "token {position} is the last at which this model's layers can resume",
    "unreadable": "what was stored after token {position} could not be read",
    "layers": "{detail}",
    "off": "the cache is switched off",
}


class Why(NamedTuple):
    """Why not more was reused, and from which token on."""

    reason: Reason
    position: int = 0
    detail: str = ""

    def __str__(self) -> str:
        return _TEXT[self.reason].format(position=self.position, detail=self.detail)
