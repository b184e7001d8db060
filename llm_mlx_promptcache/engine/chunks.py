"""ChunkPlanner: the number of tokens of a prompt that run at once, everywhere in this project.

A chunk can't be stopped half way: a new request, or a reader that leaves, waits for its end. So
chunks are sized in time, by a speed that is remembered for each model and device.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator
from enum import Enum
from typing import Any, NamedTuple

import mlx.core as mx

from ..models.facts import ModelFacts, model_facts

# Layers that can't be cut are kept at least this often in a long prefill.
CHECKPOINT = 4096

_KIND = "prefill"
# Attention makes a token dearer the more come before it: each band of positions has its own speed,
# 0 to 1,023, 1,024 to 2,047, and then each twice as long as the one before.
_BAND = 1024
_BANDS = 16
# A remembered speed stands until three chunks show it off by this factor: sizes don't waver.
_OFF = 2.0
_ENOUGH = 3
_SANE = (1e-7, 60.0)  # seconds a token


class ChunkSizes(NamedTuple):
    """The time that chunks should take, in seconds, and their limits in tokens, all powers of two.

    `shared` and `least_shared` hold while others answer; `unknown` is the size until a speed is
    known.
    """

    whole: float
    shared: float
    least: int
    least_shared: int
    unknown: int
    most: int

    @classmethod
    def fixed(cls, size: int) -> ChunkSizes:
        """Chunks of one size, however fast they are."""
        return cls(1.0, 1.0, size, size, size, size)


# On the CPU a chunk's attention is materialised, and a pass costs about as much as 15 tokens, less
# deep in a prompt: small chunks do. `python benchmarks/fairness.py curve` measures it.
_CPU = ChunkSizes(0.5, 0.15, 16, 16, unknown=256, most=256)
# On a GPU a pass reads all weights whatever its tokens, so chunks are longer; Ctrl-C and new
# requests still wait about a second, and no command runs into a watchdog far into a prompt.
_GPU = ChunkSizes(1.0, 0.15, 64, 32, unknown=256, most=2048)


class Beside(Enum):
    """The one who waits for the end of a chunk."""

    NOBODY = "nobody"
    ANSWERS = "answers"


class ChunkPlanner:
    """The sizes of one model's chunks, and the speed at which it was seen to prefill.

    `identity` is its fingerprint; without one nothing is remembered beyond this object.
    """

    def __init__(
        self,
        identity: str = "",
        facts: ModelFacts | None = None,
        sizes: ChunkSizes | None = None,
    ) -> None:
        cpu = mx.default_device().type == mx.DeviceType.cpu
        self._sizes = sizes or (_CPU if cpu else _GPU)
        self._identity = identity
        self._facts = facts or model_facts()
        self._known = _checked(self._facts.get(identity, _KIND))
        self._seen: dict[int, list[float]] = {}
        self._first: float | None = None  # what a token of the first chunk took, in seconds

    @property
    def knows(self) -> bool:
        """True if any speed is known."""
        return bool(self._known)

    def begin(self) -> ChunkPlan:
        """The sizes of one prefill, which stay what they are while it runs."""
        return ChunkPlan(self)

    def alone(self, length: int) -> Iterator[tuple[int, int]]:
        """The (start, end) of each chunk of a prefill that nobody waits for."""
        plan, start = self.begin(), 0
        while start < length:
            end = min(start + plan.size(start), length)
            yield start, end
            start = end

    def size(self, start: int, beside: Beside = Beside.NOBODY) -> int:
        """Tokens of a chunk from `start` on, by the speeds known now: a power of two."""
        sizes, shared = self._sizes, beside is Beside.ANSWERS
        seconds = sizes.shared if shared else sizes.whole
        each = self._each(_band(start))
        fits = int(sizes.unknown * seconds / sizes.whole if each is None else seconds / each)
        if each is None and self._first is not None:  # no token takes longer than those did
            fits = min(fits, int(seconds / self._first))
        return min(
            max(_power_of_two(fits), sizes.least_shared if shared else sizes.least), sizes.most
        )

    def observe(self, start: int, count: int, seconds: float) -> None:
        """Learn from a chunk; the speed found is remembered for this model and device."""
        band, each = _band(start), seconds / count
        if not _SANE[0] <= each <= _SANE[1]:
            return
        # The first one also reads weights and makes kernels; in small ones the pass dominates.
        if self._first is None:
            self._first = each
            return
        if 2 * count < self.size(start):
            return
        if band in self._known:
            seen = self._seen.setdefault(band, [])
            seen.append(each)
            if len(seen) < _ENOUGH:
                return
            each = statistics.median(seen)
            seen.clear()
            if 1 / _OFF < each / self._known[band] < _OFF:
                return
        self._known[band] = float(f"{each:.3g}")
        kept = {str(band): self._known[band] for band in sorted(self._known)}
        self._facts.put(self._identity, _KIND, kept)

    def speed(self, start: int, end: int) -> float | None:
        """Tokens a second of a prefill from `start` to `end`; None until some were measured."""
        seconds, at = 0.0, start
        while at < end:
            band = _band(at)
            each = self._each(band)
            if each is None:
                return None
            following = min(end, _BAND << band) if band < _BANDS - 1 else end
            seconds, at = seconds + (following - at) * each, following
        return (end - start) / seconds if seconds else None

    def _each(self, band: int) -> float | None:
        """Seconds a token in a band: measured, or estimated from the nearest bands."""
        known = self._known
        deeper = [other for other in known if other >= band]
        if deeper:
            return known[min(deeper)]
        if not known:
            return None
        *before, last = sorted(known)
        if not before:
            return known[last]
        grows = (known[last] - known[before[-1]]) / (_middle(last) - _middle(before[-1]))
        return known[last] + max(0.0, grows) * (_middle(band) - _middle(last))


class ChunkPlan:
    """The chunks of one prefill: one size for each band of positions, fixed once it is used.

    So a prompt that runs alone is cut at the same positions whatever the clock says meanwhile, and
    its rounding is the same each time. Only the prefill that first measures the model's speed
    adapts as it goes.
    """

    def __init__(self, planner: ChunkPlanner) -> None:
        self._planner = planner
        self._sizes: dict[tuple[int, Beside], int] = {}

    def size(self, start: int, beside: Beside = Beside.NOBODY) -> int:
        """Tokens of the chunk from `start` on."""
        key = _band(start), beside
        if key in self._sizes:
            return self._sizes[key]
        size = self._planner.size(start, beside)
        if self._planner.knows:
            self._sizes[key] = size
        return size


def chunk_end(start: int, last: int, stops: Collection[int], most: int) -> int:
    """The end of a chunk of at most `most` tokens, which passes none of `stops`."""
    return min(start + most, last, *(stop for stop in stops if start < stop))


def checkpoints(length: int) -> range:
    """The positions, besides messages' ends, where a prefill stops for layers that can't be cut."""
    return range(CHECKPOINT, length, CHECKPOINT)


def _band(start: int) -> int:
    return min((start // _BAND).bit_length(), _BANDS - 1)


def _middle(band: int) -> float:
    return _BAND * (0.75 * 2**band if band else 0.5)


def _power_of_two(most: int) -> int:
    """The largest that is not over `most`, or 1."""
    return 1 << max(0, most.bit_length() - 1)


def _checked(remembered: Any) -> dict[int, float]:
    """The speeds by band in a file of facts; nothing where it holds anything else."""
    if not isinstance(remembered, dict):
        return {}
    known = {}
    for name, each in remembered.items():
        if name not in _NAMES or type(each) is not float or not _SANE[0] <= each <= _SANE[1]:
            return {}
        known[int(name)] = each
    return known


_NAMES = frozenset(str(band) for band in range(_BANDS))
