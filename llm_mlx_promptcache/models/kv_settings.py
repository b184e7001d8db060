"""Settings of quantised keys and values: plain data, no tensors."""

from __future__ import annotations

from typing import NamedTuple


class KVSettings(NamedTuple):
    """Keys and values in `bits` bits (4 or 8), `group_size` of them to a scale, from token `start`.

    The rows before `start` are quantised too, once the path is that long. Without a `group_size`
    it is the largest of 64 and 32 that goes with the model.
    """

    bits: int
    group_size: int | None = None
    start: int = 0


def check_kv(kv: KVSettings) -> None:
    """Check the settings; ValueError if MLX does not know a value."""
    for name, value, allowed in (
        ("bits", kv.bits, (2, 3, 4, 6, 8)),
        ("group_size", kv.group_size, (None, 32, 64, 128)),
    ):
        if value not in allowed:
            raise ValueError(
                f"kv.{name} is {value}; give one of {', '.join(str(one) for one in allowed if one)}"
            )
    if kv.start < 0:
        raise ValueError(f"kv.start is {kv.start}; give 0 or more")
