"""A restore reads all rows of a path, and the ends (states, windows) that its layers need."""

import os

import pytest
from mlx_lm.models.cache import ArraysCache, KVCache
from paths_with_ends import TURN, conversation, fetched, files_of, flip, ids_of, without_ends
from played_layers import WINDOW, play, same

from llm_mlx_promptcache.cache.disk import span_bytes
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.layers.ends import needs_ends
from llm_mlx_promptcache.cache.layers.kinds import KVRows, ListOf, State, Window
from llm_mlx_promptcache.cache.layers.layout import PathPart
from llm_mlx_promptcache.cache.prompt_cache import PromptCache


@pytest.fixture
def read(monkeypatch):
    """The bytes that were read of files, as the system counts them."""
    counted, real = [], os.readv

    def readv(descriptor, buffers):
        counted.append(real(descriptor, buffers))
        return counted[-1]

    monkeypatch.setattr(os, "readv", readv)
    return counted


@pytest.mark.parametrize("turns", [4, 16])
def test_what_is_read_of_a_path_with_states_grows_with_its_rows_only(tmp_path, read, turns):
    ids = conversation(tmp_path, "state", turns)
    *earlier, last = files_of(tmp_path)
    assert len(earlier) == turns - 1
    read.clear()
    assert fetched(DiskStore(tmp_path), ids, "state") == len(ids)
    assert sum(read) == sum(without_ends(path) for path in earlier) + last.stat().st_size
    states = 3 * 256 * 4
    assert all(path.stat().st_size - without_ends(path) == states + 16 for path in earlier)


def test_windows_are_read_as_far_as_they_reach_back(tmp_path, read):
    ids = conversation(tmp_path, "windows", 8)
    files = files_of(tmp_path)
    whole = -(-WINDOW // TURN)
    read.clear()
    assert fetched(DiskStore(tmp_path), ids, "windows") == len(ids)
    rows, windows = files[:-whole], files[-whole:]
    assert sum(read) == sum(map(without_ends, rows)) + sum(p.stat().st_size for p in windows)


@pytest.mark.parametrize("family", ["state", "lists", "windows"])
def test_law_1_a_path_is_resumed_at_each_of_its_spans(tmp_path, read, family):
    ids = conversation(tmp_path, family, 5)
    size = sum(path.stat().st_size for path in files_of(tmp_path))
    for end in range(TURN, len(ids) + 1, TURN):
        read.clear()
        assert fetched(DiskStore(tmp_path), ids[:end], family) == end
        assert sum(read) < size


def test_no_more_is_asked_of_the_system_than_is_read(tmp_path, monkeypatch):
    if not hasattr(os, "posix_fadvise"):
        pytest.skip("this system takes no advice")
    ids, asked = conversation(tmp_path, "state", 4), []
    monkeypatch.delattr(os, "RWF_NOWAIT", raising=False)  # nobody says that it is in memory
    monkeypatch.setattr(span_bytes, "_AHEAD", 1)
    monkeypatch.setattr(os, "posix_fadvise", lambda _, start, size, __: asked.append(size))
    assert fetched(DiskStore(tmp_path), ids, "state") == len(ids)
    *earlier, last = files_of(tmp_path)
    assert sum(asked) == sum(without_ends(path) for path in earlier) + last.stat().st_size


class Sums(State):
    """A plugin's kind, whose way of joining is its own."""

    def join(self, views, count, headroom):
        return None


@pytest.mark.parametrize(
    ("kind", "start", "end", "span_end", "needed"),
    [
        (State(1), 80, 100, 100, True),
        (State(1), 60, 80, 80, False),
        (State(1), 80, 100, 110, False),  # the path leaves the span before its end
        (State(1), 80, 110, 110, False),  # and so does where it resumes
        (Window(30), 70, 71, 71, True),
        (Window(30), 60, 70, 70, False),
        (Window(30), 90, 110, 110, True),
        (ListOf((KVRows(), State(1))), 60, 80, 80, False),
        (ListOf((KVRows(), Window(30))), 70, 80, 80, True),
        (KVRows(), 80, 100, 100, False),
        (Sums(1), 0, 10, 10, True),
    ],
)
def test_who_needs_ends(kind, start, end, span_end, needed):
    assert needs_ends((KVRows(), kind), PathPart(start, end, span_end, []), 100) is needed


def test_restores_are_timed_by_what_they_read(tmp_path, read):
    ids = conversation(tmp_path, "state", 6)
    cache, told = PromptCache("1GB", DiskStore(tmp_path)), []
    cache._lookup.bandwidth.measured = lambda nbytes, seconds, **_: told.append(nbytes)
    read.clear()
    assert cache.fetch("m", [*ids, 5]).cached == len(ids)
    assert told == [sum(read)]


def test_a_checkpoint_inside_a_span_is_its_own_and_the_spans_states_are_left(tmp_path, read):
    """A branch in the middle of rows: the state there is a checkpoint's."""
    ids = ids_of(4)
    layers = play([KVCache(), ArraysCache(2)], ids)
    store = DiskStore(tmp_path)
    cache = PromptCache("1GB", store)
    cache.insert("m", ids, layers)
    cache.flush()
    (path,) = files_of(tmp_path)
    cache.insert("m", ids[:50], play([KVCache(), ArraysCache(2)], ids[:50]))
    cache.flush()
    assert len(files_of(tmp_path)) == 2
    flip(path, without_ends(path) + 40)
    read.clear()
    lease = PromptCache("1GB", DiskStore(tmp_path)).fetch("m", [*ids[:50], 96])
    assert lease.cached == 50
    assert same(lease.layers, play([KVCache(), ArraysCache(2)], ids[:50]))
