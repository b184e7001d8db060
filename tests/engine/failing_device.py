"""A device whose commands fail as a GPU's do, played on the CPU.

MLX marks arrays as evaluated before a GPU has finished with them. Where a command fails, what it
should have written is garbage, new buffers that layers grew into included; the error is raised
once, for the next waiter, and everybody who comes later reads the garbage.
"""

from contextlib import contextmanager

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from llm_mlx_promptcache.engine import batch, prefill, speculation

# Where the model is run, by whom.
RUNS = (
    (prefill, "prefill"),
    (batch, "forward"),
    (speculation, "forward"),
    (speculation, "forward_each"),
)
MESSAGE = "[METAL] Command buffer execution failed: Caused GPU Timeout Error"


class FailingDevice:
    """Command number `at` fails; `told` is who hears of it: "eval", "wait" or "synchronize".

    "eval": the very call. "wait": the next call that waits for anything. "synchronize": the next
    synchronisation, and nobody before. With `at` None nothing fails: the calls are counted.
    """

    def __init__(self, cache, at=None, told="eval"):
        self._cache, self._at, self._told = cache, at, told
        self.commands = self.synchronised = self.failed = 0
        self._owed = False
        self._layers = []
        self._real = {}

    @contextmanager
    def __call__(self, monkeypatch):
        with monkeypatch.context() as patched:
            for name in ("eval", "async_eval", "synchronize"):
                self._real[name] = getattr(mx, name)
                patched.setattr(mx, name, getattr(self, f"_{name}"))
            tolist = mx.array.tolist
            patched.setattr(mx.array, "tolist", lambda values: self._waited() or tolist(values))
            for module, name in RUNS:
                patched.setattr(module, name, self._noting(getattr(module, name)))
            yield self

    def _noting(self, real):
        """Layers that the model writes to are under way until a wait proves them."""

        def run(model, layers, tokens):
            self._layers = [*self._layers, *layers]
            return real(model, layers, tokens)

        return run

    def _eval(self, *arrays):
        self._waited()
        self._real["eval"](*arrays)
        if self._command(arrays):
            self._owed = self._told != "eval"
            if not self._owed:
                raise RuntimeError(MESSAGE)

    def _async_eval(self, *arrays):
        self._real["async_eval"](*arrays)
        if self._command(arrays):
            self._owed = True

    def _synchronize(self, *streams):
        self._real["synchronize"](*streams)
        self.synchronised += 1
        self._waited(True)
        self._layers = []

    def _waited(self, behind=False):
        if self._owed and (behind or self._told != "synchronize"):
            self._owed = False
            raise RuntimeError(MESSAGE)

    def _command(self, arrays):
        self.commands += 1
        if self.commands != self._at:
            return False
        self.failed += 1
        written = [*_arrays(arrays), *(a for layer in self._layers for a in _buffers(layer))]
        self._real["eval"](written)
        kept = {_place(a) for node in self._proven() for p in node.value.pieces for a in p or ()}
        for values in written:
            # No token is one of garbage here: what an answer says then is nobody's law.
            if mx.issubdtype(values.dtype, mx.floating) and _place(values) not in kept:
                data = np.array(values, copy=False)
                data[...] = np.random.default_rng(0).normal(size=data.shape)
        return True

    def _proven(self):
        """Spans whose arrays no command writes to any more."""
        tree = self._cache._tree
        return [node for node in tree.nodes() if node not in tree._unproven]


def _buffers(layer):
    if hasattr(layer, "caches"):
        return [a for part in layer.caches for a in _buffers(part)]
    held = layer.cache if hasattr(layer, "cache") else [layer.keys, layer.values]
    return _arrays(held)


def _arrays(values):
    return [a for _, a in tree_flatten(list(values)) if isinstance(a, mx.array)]


def _place(values):
    if values is None or not values.size or values.dtype == mx.bfloat16:
        return None
    return np.array(values, copy=False).__array_interface__["data"][0]
