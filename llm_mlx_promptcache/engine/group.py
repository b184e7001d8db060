"""Group: a rank's place among those that run one model together, and how long they wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal

_MOST_RANKS: Final = 64

Split = Literal["tensor", "pipeline"]
Address = tuple[str, int]


class Backend(Enum):
    """The carrier of MLX's collectives: TCP, or RDMA over Thunderbolt, all to all or as a ring."""

    RING = "ring"
    JACCL = "jaccl"
    JACCL_RING = "jaccl-ring"

    @property
    def of_mlx(self) -> Literal["ring", "jaccl"]:
        """Its name in `mx.distributed.init`."""
        return "ring" if self is Backend.RING else "jaccl"


class GroupEnded(RuntimeError):
    """The group of ranks has ended, in words; nothing of it goes on, and nothing restarts here."""


@dataclass(frozen=True)
class Group:
    """One rank's place among those that run a model together; ValueError where there is none.

    `split` is how the model is cut: each layer, or the layers among the ranks.
    """

    rank: int
    size: int
    split: Split = "tensor"
    backend: Backend = Backend.RING

    def __post_init__(self) -> None:
        if not 2 <= self.size <= _MOST_RANKS:
            raise ValueError(f"size is {self.size}; give 2 to {_MOST_RANKS} ranks")
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank is {self.rank}; give 0 to {self.size - 1}")
        if self.split not in ("tensor", "pipeline"):
            raise ValueError(f"split is {self.split!r}; use tensor or pipeline")

    @property
    def shard(self) -> str:
        """The part of the model that is here, which is part of what its rows belong to."""
        return f"{self.split} {self.rank + 1}/{self.size}"


@dataclass(frozen=True)
class Deadlines:
    """The waits of ranks, in seconds, by `clock`; a step that loads the model may take longer.

    `joining` is for MLX's own meeting, in which a rank may be silent and can't be reached.
    """

    meeting: float = 60.0
    joining: float = 30.0
    beat: float = 0.5
    silence: float = 10.0
    step: float = 120.0
    loading: float = 1800.0
    clock: Callable[[], float] = time.monotonic
