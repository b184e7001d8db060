"""The memory that models, the cache and requests may take on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from ..cache.layers.device_memory import DeviceMemory

_GB: Final = 1_000_000_000
# Left to the system, the cache and other programs.
_WEIGHTS_SHARE: Final = 0.7
# The cache's default limit, and its part of the memory that models leave.
CACHE_MOST: Final = 4 * _GB
_CACHE_PART: Final = 4
# A GPU's working set is advice: this small part of it is allowed however little models leave.
_LEAST_PART: Final = 16
# Beside weights, rows and a pass's memory are kept resident, no more: Macs that wired all that
# they could froze.
_WIRED_BESIDE: Final = 4 * _GB
_SYSTEM_SHARE: Final = 0.35
_SYSTEM_MOST: Final = 8 * _GB


class Shares(NamedTuple):
    """The memory that models leave on this machine, in bytes: for the cache, and for requests."""

    left: int
    cache: int
    requests: int


def shares(memory: DeviceMemory, beside: int, cache: int | None = None) -> Shares:
    """Divide the memory left beside so many bytes; `cache` is the user's limit for the cache.

    The user's limit is kept. Requests get the rest, at least half of what is left.
    """
    usable = memory.working_set if memory.gpu else memory.machine - _system(memory)
    left = max(0, usable - beside)
    if cache is None:
        cache = min(CACHE_MOST, left // _CACHE_PART)
    return Shares(left, cache, max(left - cache, left // 2, usable // _LEAST_PART))


def budget() -> int:
    """Bytes that the weights of all loaded models together may take."""
    from ..cache.layers.device_memory import device_memory

    return int(device_memory().working_set * _WEIGHTS_SHARE)


def wired_limit(memory: DeviceMemory, weights: int) -> int:
    """Bytes to keep resident for models of so many bytes, leaving the system its share."""
    most = min(memory.machine - _system(memory), memory.working_set)
    return max(0, min(weights + _WIRED_BESIDE, most))


def weights_of(folder: Path) -> int:
    """Bytes of the weights in a model's folder, about as many as it takes in memory.

    Files that can't be looked at, such as links to nothing, count as none: loading names them.
    """
    return sum(map(_size, folder.glob("*.safetensors")))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _system(memory: DeviceMemory) -> int:
    return min(int(memory.machine * _SYSTEM_SHARE), _SYSTEM_MOST)
