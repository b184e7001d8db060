"""Paths whose rows follow from their tokens alone, so that any process can tell a wrong byte.

Imported by the tests, and run as a child: python worlds.py WHAT FOLDER SEED ...
"""

import contextlib
import errno
import io
import os
import random
import resource
import signal
import sys
from array import array
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import KVCache

from llm_mlx_promptcache.cache.disk.compaction import Compacted
from llm_mlx_promptcache.cache.disk.files import Files
from llm_mlx_promptcache.cache.disk.span_file import host_tensors
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.layers.layout import layout_of
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.cache.span import NewSpan

LAYERS = 2
PATHS = 6  # that a store of the tests of its index holds
NAMESPACE = "m"
ROW = LAYERS * 2 * 2 * 4  # layers x keys and values x width x bytes


def file_of(store):
    """A store's only file."""
    (path,) = store.spans_folder.glob("*.safetensors")
    return path


def rows(ids):
    """A number a position that depends on every token up to it."""
    sums = np.cumsum(np.array(ids, dtype=np.uint64) * np.arange(1, len(ids) + 1, dtype=np.uint64))
    return (sums % 65_521).astype(np.float32)


def layers_for(ids):
    """Layers that hold what `rows` says."""
    values = mx.array(rows(ids))
    made = []
    for number in range(LAYERS):
        layer = KVCache()
        block = mx.stack([values + number, values * 2 + number], axis=-1)[None, None]
        layer.update_and_fetch(block, block + 1)
        made.append(layer)
    return made


def right(layers, ids):
    """True if layers hold these tokens' rows."""
    values = rows(ids)
    for number, layer in enumerate(layers):
        block = np.stack([values + number, values * 2 + number], axis=-1)
        for found, wanted in ((layer.keys, block), (layer.values, block + 1)):
            if not np.array_equal(np.array(found[0, 0, : len(ids)]), wanted):
                return False
    return True


def paths(seed, count=10, length=40):
    """Some paths that share prefixes."""
    rng = random.Random(seed)
    base = rng.choices(range(1000), k=length)
    return [base[: rng.randrange(1, length)] + rng.choices(range(1000), k=20) for _ in range(count)]


def new_span(ids):
    """A path as one span, ready to be stored by a process that may run no MLX."""
    layers = layers_for(ids)
    pieces = [
        (layer.keys[..., : len(ids), :], layer.values[..., : len(ids), :]) for layer in layers
    ]
    path = array("I", ids)
    return NewSpan(NAMESPACE, layout_of(layers), path, 0, "user", *host_tensors(pieces), True)


def names(store):
    """The names of a store's files, in order."""
    return sorted(path.name for path in store.spans_folder.iterdir())


def on_disk(store):
    """The bytes of a store's files."""
    return sum(path.stat().st_size for path in store.spans_folder.iterdir())


def put(store, ids):
    """Store a path, as a process of one turn does."""
    cache = PromptCache("1GB", store)
    cache.insert(NAMESPACE, ids, layers_for(ids))
    return cache.flush()


def get(store, ids):
    """The number of a path's tokens that a fresh cache finds; an error if they are wrong."""
    lease = PromptCache("1GB", store).fetch(NAMESPACE, [*ids, 5])
    assert lease.layers is None or right(lease.layers, ids[: lease.cached]), "a wrong byte"
    return lease.cached


def turns(store, count=8, seed=7, length=12):
    """A conversation, a file for each turn; its path."""
    ids = random.Random(seed).choices(range(1000), k=count * length)
    for turn in range(1, count + 1):
        put(store, ids[: turn * length])
    return ids


def compacted(store):
    """Take all steps of making packs; returns the number of packs made."""
    *_, done = Compacted(), *store.compact()
    return done.packs


def compact(folder, seed, times):
    """Make packs so many times."""
    return sum(compacted(DiskStore(folder, "20MB")) for _ in range(int(times)))


def work(folder, seed, steps, budget="20MB"):
    """Insert and look up so many times."""
    return sum(1 for _ in _working(folder, seed, int(steps), budget))


def tell(folder, seed):
    """The same until somebody ends it, with a dot for each time."""
    for _ in _working(folder, seed, 1 << 30, "20MB"):
        os.write(1, b".")


def _working(folder, seed, steps, budget):
    store, rng = DiskStore(folder, budget), random.Random(seed)
    choices = paths(1, 30) + paths(seed, 30)
    for _ in range(steps):
        ids = rng.choice(choices)
        if rng.random() < 0.5:
            put(store, ids)
        else:
            get(store, ids)
        yield


def clear(folder, seed, steps):
    """Clear so many times."""
    for _ in range(int(steps)):
        DiskStore(folder).clear()
    return steps


@contextlib.contextmanager
def watched(seconds=60):
    """Fail a test that hangs: none waits longer than this, and none is asked to be fast."""

    def hangs(*_):
        raise AssertionError(f"nothing came back in {seconds} seconds")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def once(folder, seed):
    """Store one path and say so."""
    return put(DiskStore(folder, "20MB"), paths(int(seed))[0])


def fetch(folder, seed):
    """Look one path up."""
    return get(DiskStore(folder, "20MB"), paths(int(seed))[0])


def fetch_each(folder, seed):
    """Look a path up in each of the folder's stores, in a process that may hardly grow."""
    ids = paths(int(seed))[0]
    get(DiskStore(folder / "none", "20MB"), ids)  # all that a lookup needs is loaded
    held = Path("/proc/self/statm")
    if held.exists():  # macOS keeps nobody to such a limit
        limit = int(held.read_text().split()[0]) * resource.getpagesize() + (64 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    stores = sorted((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    return [get(DiskStore(store, "20MB"), ids) for store in stores]


def full_file():
    """A file on a disk that is full: Linux has one, elsewhere it is played."""
    full = Path("/dev/full")
    return full.open("wb", buffering=0) if full.exists() else _Full(os.devnull, "wb")


class _Full(io.FileIO):
    def write(self, block):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Failing(Files):
    """The calls of `Files`; from the n-th on one fails, or all do."""

    def __init__(self, error, at, sticky=False):
        self.error, self.at, self.sticky, self.calls = error, at, sticky, 0

    def _step(self):
        self.calls += 1
        if self.calls == self.at or (self.sticky and self.calls > self.at):
            raise OSError(self.error, "injected")

    def create(self, path):
        self._step()
        return _File(super().create(path), self)

    def open(self, path):
        self._step()
        return super().open(path)

    def replace(self, source, target):
        self._step()
        super().replace(source, target)

    def name_new(self, source, target):
        self._step()
        super().name_new(source, target)

    def unlink(self, path):
        self._step()
        return super().unlink(path)

    def sync(self, file):
        self._step()

    def sync_folder(self, folder):
        self._step()

    def names(self, folder):
        self._step()
        return super().names(folder)


class _File:
    def __init__(self, file, files):
        self._file, self._files = file, files

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, block):
        self._files._step()
        return self._file.write(block)

    def seek(self, at):
        self._file.seek(at)

    def fileno(self):
        return self._file.fileno()


if __name__ == "__main__":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    what, folder, seed, *more = sys.argv[1:]
    result = globals()[what](Path(folder), int(seed), *more)
    os.writev(1, [f"{result}\n".encode()])  # not `write`, which strace may have been told to fail
