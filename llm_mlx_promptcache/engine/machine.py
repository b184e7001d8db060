"""What this machine can hold: the size of a model's weights, and the memory for them."""

from __future__ import annotations

import os
from pathlib import Path

import mlx.core as mx

# Of all memory; the rest is the system's, and keys' and values'. Apple's own bound is about that.
_SHARE = 0.75


def weights_size(folder: Path) -> int:
    """Bytes of a model's weights."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def memory_for_weights() -> int:
    """Bytes that weights can have here: what the GPU should work in, or most of the memory."""
    working = mx.device_info().get("max_recommended_working_set_size")
    if isinstance(working, int) and working > 0:
        return working
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * _SHARE)
