"""How much memory models may take on this machine."""

from __future__ import annotations

import os
from pathlib import Path

# What the system, the cache and other programs need is left alone.
_SHARE = 0.7


def total_memory() -> int:
    """Bytes of this machine: of its GPU's working set where there is one."""
    import mlx.core as mx

    if mx.metal.is_available():
        return int(mx.device_info()["max_recommended_working_set_size"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def budget() -> int:
    """Bytes that the weights of all loaded models together may take."""
    return int(total_memory() * _SHARE)


def weights_of(folder: Path) -> int:
    """Bytes of the weights in a model's folder, which are about what it takes in memory."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
