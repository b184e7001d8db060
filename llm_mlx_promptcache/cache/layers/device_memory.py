"""The memory of the device: its size, MLX's use of it, and the pool of freed buffers.

MLX is asked for memory here and nowhere else, so a test that replaces `mx` here plays any machine.
MLX keeps freed buffers for arrays of nearly their size, on Metal up to 1.5 times the working set,
and gives none back by itself: rows that are copied into longer buffers, or out of them, leave a
second conversation there.
"""

from __future__ import annotations

import mmap
import os
from typing import Any, Final, NamedTuple

import mlx.core as mx

# The pool's limit between two copies of rows, whose buffers nothing fits into again.
POOL_OF_COPIES: Final = 8 << 20
# And between two steps of answers: it has room for the new buffers of a step of 32 answers.
POOL_OF_STEPS: Final = 128 << 20
# While the model runs: a chunk's layers use each other's buffers, so small ones are not bounded.
_LEAST_POOL: Final = 256 << 20
_POOL_SHARE: Final = 32  # of the working set, its part


class DeviceMemory(NamedTuple):
    """A machine's memory for models, in bytes.

    `working_set` is the size its GPU works with well (of a CPU: all). Each array takes whole pages
    of `page` bytes, and no more than `buffers` arrays can exist; None if the limit is unknown.
    """

    machine: int
    working_set: int
    page: int = 1
    buffers: int | None = None
    gpu: bool = False


def device_memory() -> DeviceMemory:
    """The memory of this machine."""
    if mx.default_device().type == mx.DeviceType.cpu:
        machine = _physical()
        return DeviceMemory(machine, machine)
    info: dict[str, Any] = dict(mx.device_info())
    if not mx.metal.is_available():
        total = int(info.get("total_memory") or _physical())
        return DeviceMemory(total, total, gpu=True)
    return DeviceMemory(
        int(info["memory_size"]),
        int(info["max_recommended_working_set_size"]),
        mmap.PAGESIZE,
        int(info["resource_limit"]),
        gpu=True,
    )


def active() -> int:
    """Bytes that MLX holds in this process, for any use; without the pool."""
    return mx.get_active_memory()


def pooled() -> int:
    """Bytes of freed buffers that MLX keeps."""
    return mx.get_cache_memory()


def trim_pool(most: int = 0) -> None:
    """Return freed buffers to the system if they come to more than `most` bytes."""
    if mx.get_cache_memory() > most:
        mx.clear_cache()


def bound_pool() -> None:
    """Limit MLX's freed buffers to the size that prefill has a use for."""
    most = max(_LEAST_POOL, device_memory().working_set // _POOL_SHARE)
    before = mx.set_cache_limit(most)
    if before < most:  # somebody wants less, or a CPU's pool is smaller
        mx.set_cache_limit(before)


def wire(limit: int) -> int:
    """Keep so many bytes resident; returns the previous number (0 but on Apple's GPUs)."""
    return mx.set_wired_limit(limit) if mx.metal.is_available() else 0


def _physical() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
