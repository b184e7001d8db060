"""Hostfiles as mlx.distributed_config writes them, and others."""

import json


def local(count=2):
    """A list of ranks on this machine."""
    return [{"ssh": "127.0.0.1", "ips": ["127.0.0.1"], "rdma": []} for _ in range(count)]


def macs(count=3, **changes):
    """Macs with a device towards each other, as `mlx.distributed_config --backend jaccl` has it."""
    return {
        "backend": "jaccl",
        "envs": ["MLX_METAL_FAST_SYNCH=1"],
        "hosts": [
            {
                "ssh": f"mac{one}.local",
                "ips": [f"10.0.0.{one + 1}"],
                "rdma": [None if one == other else f"rdma_en{other}" for other in range(count)],
            }
            for one in range(count)
        ],
        **changes,
    }


def written(path, data):
    """A file that holds these hosts."""
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path
