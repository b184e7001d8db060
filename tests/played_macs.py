"""Macs of 8 to 128 GB, played under the functions by which MLX is asked for memory.

The device stays this machine's CPU: what is played is what Metal says of the machine, the pages in
which it gives memory, the size of its pool, and what other models hold.
"""

import gc
from contextlib import contextmanager
from types import SimpleNamespace

import mlx.core as mx
import pytest

from llm_mlx_promptcache.cache.layers import device_memory

# What Metal recommends as a working set, in bytes, as users' logs have it.
WORKING_SETS = {
    8: 5_726_633_984,
    16: 11_453_251_584,
    24: 17_179_885_568,
    128: 103_079_215_104,
}
PAGE = 16_384
BUFFERS = 499_000


class PlayedMac:
    """Stands for `mx` where it is asked for memory; models hold `weights` bytes more than here."""

    DeviceType = mx.DeviceType
    metal = SimpleNamespace(is_available=lambda: True)

    def __init__(self, size, weights=0, buffers=BUFFERS):
        self.working_set = WORKING_SETS[size]
        self.weights = weights
        self.info = {
            "memory_size": size << 30,
            "max_recommended_working_set_size": self.working_set,
            "resource_limit": buffers,
            "device_name": f"a Mac of {size} GB",
        }
        self.wired = [0]  # each limit that was set
        gc.collect()
        self._before = mx.get_active_memory()

    def default_device(self):
        return SimpleNamespace(type=mx.DeviceType.gpu)

    def device_info(self):
        return self.info

    def get_active_memory(self):
        return self.weights + mx.get_active_memory() - self._before

    def get_cache_memory(self):
        return mx.get_cache_memory()

    def clear_cache(self):
        mx.clear_cache()

    def set_cache_limit(self, limit):
        return mx.set_cache_limit(limit)

    def set_wired_limit(self, limit):
        if limit > self.working_set:
            raise ValueError("[metal::set_wired_limit] larger than the maximum working set size")
        self.wired.append(limit)
        return self.wired[-2]


class PlayedCuda(PlayedMac):
    """Stands for `mx` on a machine with an NVIDIA GPU, of so many bytes: nothing is wired there."""

    metal = SimpleNamespace(is_available=lambda: False)

    def __init__(self, total, weights=0):
        super().__init__(128, weights)
        self.working_set = total
        self.info = {"device_name": "an NVIDIA GPU", "total_memory": total}

    def set_wired_limit(self, limit):
        raise AssertionError("there is no such limit")


@contextmanager
def playing(mac):
    """Have this process run on `mac` meanwhile, with a pool as large as Metal's to begin with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_memory, "mx", mac)
        patch.setattr(device_memory, "mmap", SimpleNamespace(PAGESIZE=PAGE))
        before = mx.set_cache_limit(mac.working_set * 3 // 2)
        try:
            yield mac
        finally:
            mx.set_cache_limit(before)
            mx.clear_cache()
