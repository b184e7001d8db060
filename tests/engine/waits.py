"""Waits for the device and work given to it, counted where MLX is asked for them."""

import re
from collections import Counter

import mlx.core as mx

# What gives an array another shape and runs nothing.
_VIEWS = {"Broadcast", "ExpandDims", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "View"}


class Counted:
    """The number of calls of each of MLX's functions since the last `clear`."""

    def __init__(self, monkeypatch):
        self.calls = Counter()
        for name in ("eval", "synchronize", "async_eval"):
            self._count(monkeypatch, mx, name)
        for name in ("item", "tolist"):
            self._count(monkeypatch, mx.array, name)

    def _count(self, monkeypatch, owner, name):
        real = getattr(owner, name)

        def called(*given):
            self.calls[name] += 1
            return real(*given)

        monkeypatch.setattr(owner, name, called)

    def clear(self):
        self.calls.clear()

    def __getitem__(self, name):
        return self.calls[name]


def first_token(scheduler, reader):
    """Run a request until its first token is there."""
    scheduler.add(reader)
    while not any(sequence.answer.ids for sequence in scheduler._decode):
        scheduler.step()
        assert scheduler.busy


def to_the_end(scheduler):
    while scheduler.busy:
        scheduler.step()


def launches(folder, *arrays):
    """The number of kernels that would make these arrays: the nodes of their graph but views."""
    graph = folder / "graph.dot"
    mx.export_to_dot(str(graph), *arrays)
    return sum(name not in _VIEWS for name in re.findall(r'label ="(\w+)"', graph.read_text()))
