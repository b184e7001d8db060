"""Prefill: prompts run a chunk at a time, each alone in layers of its own."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import NamedTuple

import mlx.nn as nn

from ..cache import device
from ..cache.insertion import Rows
from .chunks import Beside, ChunkPlan, ChunkPlanner, chunk_end
from .forward import prefill
from .kv import KVHandle, KVManager
from .reuse import reuse_of
from .sequence import Sequence, next_short, overtake
from .turns import Party


class Ran(NamedTuple):
    """A prompt whose chunk ran, or failed with `error`."""

    sequence: Sequence
    error: BaseException | None = None


class Prefill:
    """The prompts of one model at work; `planner` sizes their chunks, `clock` tells seconds."""

    def __init__(
        self, model: nn.Module, kv: KVManager, planner: ChunkPlanner, clock: Callable[[], float]
    ) -> None:
        self._model = model
        self._kv = kv
        self._planner = planner
        self._clock = clock

    def begin(self, sequence: Sequence, rows: Rows) -> None:
        """Give a prompt its layers, with the cached part of it, and its sizes of chunks."""
        speed = self._planner.speed(0, len(sequence.ids))
        sequence.handle = self._kv.lease(
            sequence.prepared, sequence.ids, rows, speed, sequence.asked
        )
        sequence.done = sequence.handle.lease.cached
        if sequence.plan is None:
            sequence.cached, sequence.why = sequence.done, str(sequence.handle.lease.why)
            sequence.from_disk = sequence.handle.lease.from_disk
            sequence.reuse = reuse_of(sequence.prepared, sequence.handle.lease)
        sequence.plan = self.plan()

    def turn(self, sequences: list[Sequence], party: Party, beside: Beside) -> Iterator[Ran]:
        """A chunk of a long prompt (they alternate), or a chunk's worth of short ones.

        A prompt that is done, or failed, has left `sequences` before the next one runs. Short
        prompts that come together answer together. Chunks are smaller while others answer.
        """
        share = 1.0
        while share > 0 and (its_own := [one for one in sequences if one.party is party]):
            sequence = its_own[0] if party is Party.LONG else next_short(its_own)
            if not _worth_a_pass(sequence, share, beside):
                return
            if party is Party.SHORT:
                overtake(its_own, sequence)
            sequences.remove(sequence)
            sequences.append(sequence)
            most, start, error = sequence.chunk(beside), sequence.done, None
            try:
                self._run(sequence, max(1, int(share * most)))
            except BaseException as failure:
                error = failure
            share = share - (sequence.done - start) / most if party is Party.SHORT else 0
            yield Ran(sequence, error)

    def _run(self, sequence: Sequence, most: int) -> None:
        """Run the next chunk of a prompt, and keep the rows up to its end."""
        assert sequence.handle is not None
        start = sequence.done
        sequence.done = self.chunk(sequence.handle, sequence.ids, start, most)
        self.keep(sequence.handle, sequence.ids[: sequence.done], start)

    def plan(self) -> ChunkPlan:
        """The sizes of one prompt's chunks."""
        return self._planner.begin()

    def chunk(self, handle: KVHandle, ids: array[int], start: int, most: int) -> int:
        """Run the chunk of `ids` from `start` on, up to the next stop; returns its end."""
        end = chunk_end(start, len(ids) - 1, handle.stops, most)
        began = self._clock()
        with device.work(), self._kv.running(handle, start, end):
            prefill(self._model, handle.layers, ids[start:end])
        self._planner.observe(start, end - start, self._clock() - began)
        return end

    def keep(self, handle: KVHandle, path: array[int], start: int) -> None:
        """Keep the layers' rows of `path` up to the last place that its chunk completed.

        The chunk began at `start`; the next one may push out rows that these places need.
        """
        passed = [at for at in handle.stops | handle.ends if start < at <= len(path)]
        if passed:
            self._kv.insert(handle, path[: max(passed)])


def _worth_a_pass(sequence: Sequence, share: float, beside: Beside) -> bool:
    """Tell whether a share of a turn is enough for a prompt, to its end or half a chunk of it.

    A pass costs about as much as 15 tokens on a CPU, and on a GPU whatever its tokens are.
    """
    most = sequence.chunk(beside)
    return share == 1.0 or share * most >= min(sequence.left, most // 2)
