"""Waits for the device and work given to it, counted where MLX is asked for them."""

import re
from collections import Counter

import mlx.core as mx
from readers import Reader

from llm_mlx_promptcache.cache.disk import streams
from llm_mlx_promptcache.cache.layers import pieces
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.request import GenerationRequest

LAYERS = 28
# Calls of mx.eval before a first token, in a model of so many layers, however many spans.
MOST_WAITS = {"cold": 5, "warm": 15, "warm, with a disk": 20, "after a restart": 9}
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


def in_all_groups(monkeypatch):
    """Have tiny rows joined and restored in as many groups as a large model's on a GPU."""
    monkeypatch.setattr(pieces, "_LEAST", 0)
    monkeypatch.setattr(streams, "_LEAST", 0)
    monkeypatch.setattr(streams, "is_on_cpu", lambda: False)  # a wait is no device's there


def chat(messages):
    """So many messages, of which each ends a span."""
    return [Message(("user", "assistant")[n % 2], f"Hello {n}") for n in range(messages)]


class Talk:
    """Turns of one conversation over a scheduler, counted up to each first token."""

    def __init__(self, scheduler, counted, messages):
        self.scheduler = scheduler
        self.counted = counted
        self.messages = messages

    def turn(self):
        """Calls up to the first token, calls behind it, and the end."""
        reader = Reader(GenerationRequest(tuple(self.messages), max_tokens=4, drafts=False))
        self.counted.clear()
        first_token(self.scheduler, reader)
        first = dict(self.counted.calls)
        self.counted.clear()
        to_the_end(self.scheduler)
        behind, last = dict(self.counted.calls), reader.last
        self.scheduler.settle(last=True)
        self.messages += [
            Message("assistant", last.text, generated=last.generated()),
            Message("user", "And then?"),
        ]
        return first, behind, last.usage


def launches(folder, *arrays):
    """The number of kernels that would make these arrays: the nodes of their graph but views."""
    graph = folder / "graph.dot"
    mx.export_to_dot(str(graph), *arrays)
    return sum(name not in _VIEWS for name in re.findall(r'label ="(\w+)"', graph.read_text()))
