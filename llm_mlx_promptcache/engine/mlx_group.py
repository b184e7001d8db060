"""MLX's own group of ranks, whose meeting can't be heard and has no end of its own."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from ..models.errors import one_line
from .group import GroupEnded

if TYPE_CHECKING:
    from .ranks import Ranks


def connect(ranks: Ranks) -> Any:
    """MLX's own group, in which the model's collectives run; GroupEnded where it is another.

    The environment says where the others are: MLX_RANK and MLX_HOSTFILE, and what jaccl wants.
    """
    group = ranks.group
    try:
        with _joining(ranks):
            joined = mx.distributed.init(strict=True, backend=group.backend.of_mlx)
    except GroupEnded:
        raise
    except Exception as error:
        raise ranks.fail(
            f"rank {group.rank} ({ranks.name}) can't join MLX's {group.backend.of_mlx} backend:"
            f" {one_line(error)}"
        ) from error
    if (joined.rank(), joined.size()) != (group.rank, group.size):
        raise ranks.fail(
            f"rank {group.rank} of {group.size} ({ranks.name}) is rank {joined.rank()} of"
            f" {joined.size()} to MLX; MLX_RANK and the hostfile say otherwise than was asked"
        )
    return joined


@contextmanager
def _joining(ranks: Ranks) -> Iterator[None]:
    """Let MLX's own ranks meet inside; all come here together, and leave together.

    MLX waits for them without letting any other thread run, so that nobody is heard meanwhile,
    and for ever where one of them is gone: this process ends then, which others see.
    """
    ranks.agree()  # nobody is silent because another still imports MLX
    most = ranks.deadlines.joining
    with ranks.silence(most):
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            faulthandler.dump_traceback_later(most, exit=True, file=nowhere)
            try:
                with ranks.step():
                    yield
            finally:
                faulthandler.cancel_dump_traceback_later()
        with ranks.step(most):
            ranks.agree()
