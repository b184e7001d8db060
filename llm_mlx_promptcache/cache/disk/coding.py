"""Bfloat16 rows in fewer bytes, without loss: exponents are split from mantissas and packed.

The high byte of a bfloat16 holds its sign and most of its exponent, and in keys and values few
exponents are common; the low byte is noise. So each block has the low bytes first, as they are, and
behind them the high bytes as one frame of zstd, level 1. float16, float32 and quantised rows were
measured (docs/disk.md) and do not pay: they stay as they are.

A block is untrusted. Its unpacked size is known beforehand: half of its bytes are stored plainly,
and a frame that declares any size but the other half is refused.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import zstandard

_LEVEL: Final = 1
_MOST_WINDOW: Final = 1 << 23  # bytes that a frame may ask for beside its content


class BadBlock(ValueError):
    """A block that is not as it was coded."""


def coded(rows: bytes | memoryview) -> bytes:
    """A block of bfloat16 numbers, coded."""
    pairs = np.frombuffer(rows, np.uint8).reshape(-1, 2)
    low, high = (np.ascontiguousarray(pairs[:, at]) for at in (0, 1))
    packer = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True)
    return low.tobytes() + packer.compress(high.tobytes())


def decoded_into(block: bytes | memoryview, targets: list[memoryview]) -> None:
    """Unpack a block into these, which take all of its numbers; BadBlock if it is none."""
    half = sum(target.nbytes for target in targets) // 2
    low = np.frombuffer(block, np.uint8, half) if len(block) >= half else None
    if low is None:
        raise BadBlock("a block is shorter than what it holds as it is")
    high = np.frombuffer(_unpacked(memoryview(block)[half:], half), np.uint8)
    at = 0
    for target in targets:
        numbers = np.frombuffer(target, "<u2")
        end = at + len(numbers)
        # Whole numbers: writing every other byte, twice, is several times slower.
        np.left_shift(high[at:end], 8, out=numbers, dtype=np.uint16)
        np.bitwise_or(numbers, low[at:end], out=numbers)
        at = end


def _unpacked(frame: memoryview, size: int) -> bytes:
    try:
        said = zstandard.get_frame_parameters(frame)
        if said.content_size != size or said.window_size > _MOST_WINDOW:
            raise BadBlock(f"a frame says that it holds {said.content_size} bytes, not {size}")
        found = zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW).decompress(
            frame, max_output_size=size, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise BadBlock(f"a frame can't be unpacked: {error}") from None
    if len(found) != size:
        raise BadBlock(f"a frame holds {len(found)} bytes, not {size}")
    return found
