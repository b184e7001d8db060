"""Requests without an engine's thread: readers that a test steps itself, and a tool to ask with."""

import itertools

from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.chunks import ChunkPlanner, ChunkSizes
from llm_mlx_promptcache.engine.events import Finished
from llm_mlx_promptcache.engine.request import GenerationRequest

MAGIC = {
    "type": "function",
    "function": {
        "name": "magic",
        "description": "Do magic.",
        "parameters": {
            "type": "object",
            "properties": {"input": {"type": "integer", "minimum": 0, "maximum": 99}},
            "required": ["input"],
        },
    },
}
SYSTEM = Message("system", "You keep a lighthouse and answer in few words. " * 6)


def planner_of(size):
    """A planner whose chunks have this size whatever the machine."""
    return ChunkPlanner(sizes=ChunkSizes.fixed(size))


def steady_clock():
    """A clock that goes on a millisecond a look: turns follow from requests, not the machine."""
    looks = itertools.count()
    return lambda: next(looks) / 1000


class Reader:
    """A reader that writes down what it is told; `gone_after` events it is gone."""

    def __init__(self, request, gone_after=None):
        self.request = request
        self.events = []
        self.gone_after = gone_after

    def send(self, *told):
        self.events.extend(told)

    def gone(self):
        return self.gone_after is not None and len(self.events) >= self.gone_after

    @property
    def last(self):
        *_, event, end = self.events
        assert end is None
        if isinstance(event, BaseException):
            raise event
        assert isinstance(event, Finished)
        return event


def request(text, *, system=True, **more):
    messages = ([SYSTEM] if system else []) + [Message("user", text)]
    return GenerationRequest(tuple(messages), **{"max_tokens": 12, **more})


def together(scheduler, *requests):
    """All answered at once; the readers."""
    readers = [one if isinstance(one, Reader) else Reader(one) for one in requests]
    for one in readers:
        scheduler.add(one)
    while scheduler.busy:
        scheduler.step()
    return readers


class Failing:
    """A model that fails when `when(tokens)` says so."""

    def __init__(self, model, when):
        self._model, self._when = model, when
        self.failed = 0

    def __call__(self, tokens, cache=None):
        if self._when(tokens):
            self.failed += 1
            raise RuntimeError("[metal::malloc] no more memory")
        return self._model(tokens, cache=cache)

    def __getattr__(self, name):
        return getattr(self._model, name)


class Counting:
    """A model whose runs, and tokens in them, are counted."""

    def __init__(self, model):
        self._model = model
        self.passes = self.tokens = 0
        self.shapes = []  # of each run: (requests, tokens of each)

    @property
    def sizes(self):
        """The number of tokens in each run."""
        return [requests * tokens for requests, tokens in self.shapes]

    def __call__(self, tokens, cache=None):
        self.passes += 1
        self.tokens += tokens.size
        self.shapes.append(tokens.shape)
        return self._model(tokens, cache=cache)

    def __getattr__(self, name):
        return getattr(self._model, name)
