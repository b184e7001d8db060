"""Cleanup that a thread owes MLX before it ends."""

from __future__ import annotations

from contextlib import suppress

import mlx.core as mx


def leave_thread() -> None:
    """Give back the calling thread's streams, which must be its last call to MLX.

    A thread that ends with streams of its own makes the process abort at its exit, more often
    than not (ml-explore/mlx#3395).
    """
    with suppress(RuntimeError):  # nobody waits for its result any more
        mx.synchronize()
    mx.clear_streams()
