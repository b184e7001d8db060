"""Times of writes: behind the caller's back, each span once, short ends with the next span."""

import random
import threading
from array import array

import pytest
from plain_layers import held, rows, state

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.insertion import Rows
from llm_mlx_promptcache.cache.new_spans import SHORT
from llm_mlx_promptcache.cache.prompt_cache import PromptCache

IDS = random.Random(3).choices(range(100), k=200)


class Slow(DiskStore):
    """A store whose writes wait until they are released."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.go = threading.Event()
        self.threads = set()

    def save(self, span):
        assert self.go.wait(30)
        self.threads.add(threading.current_thread().name)
        return super().save(span)


@pytest.fixture
def slow(tmp_path):
    made = Slow(tmp_path / "cache")
    yield made
    made.go.set()


def test_spans_are_written_behind_the_callers_back(slow, run):
    cache = PromptCache("100MB", slow)
    cache.insert("m", IDS[:50], run(IDS[:50])[1])
    assert cache.flush(wait=False) == 1
    cache.insert("m", IDS[:90], run(IDS[:90])[1])
    assert cache.flush(wait=False) == 1
    assert cache.flush(wait=False) == 0
    assert slow.stats()["spans"] == 0
    slow.go.set()
    cache.flush()
    assert slow.threads == {"span-writer"}
    assert [s.end for s in slow.lookup("m", array("I", IDS[:90])).spans] == [50, 90]
    assert slow.stats()["tokens"] == 90
    assert slow.check() == []


def test_what_leaves_memory_while_it_is_written_is_found(slow, run):
    cache = PromptCache("100MB", slow)
    cache.insert("m", IDS[:50], run(IDS[:50])[1])
    slow.go.set()
    cache.trim_to(memory_bytes=0)
    assert cache.fetch("m", IDS[:60]).cached == 50


def test_law_16_what_is_on_its_way_to_the_disk_is_no_reason_where_it_was_looked_at(slow):
    cache = PromptCache("100MB", slow)
    cache.insert("m", IDS[:50], [state(IDS[:50])])
    assert cache.flush(wait=False) == 1
    lease = cache.fetch("m", [*IDS[:20], 1000, 1001])
    assert (lease.cached, lease.matched, lease.why.reason) == (0, 20, "checkpoint")
    assert cache.explain("m", [*IDS[:20], 1000, 1001]).reason == "checkpoint"
    slow.go.set()
    cache.flush()


def test_a_checkpoint_taken_inside_what_is_stored_is_written(tmp_path):
    cache = PromptCache("100MB", DiskStore(tmp_path))
    for end in (50, 30):
        cache.insert("m", IDS[:end], [rows(IDS[:end]), state(IDS[:end])])
        cache.flush()
    later = PromptCache("100MB", DiskStore(tmp_path))
    assert later.fetch("m", [*IDS[:30], 1000, 1001]).cached == 30


def test_short_ends_wait_and_become_part_of_the_next_file(tmp_path, run):
    store = DiskStore(tmp_path)
    cache = PromptCache("100MB", store)
    ends = [40, 40 + SHORT // 2, 40 + SHORT, 120]
    for end in ends:
        cache.insert("m", IDS[:end], run(IDS[:end])[1])
        cache.flush(short=False)
    assert store.stats()["spans"] == 3
    assert store.stats()["tokens"] == 120
    cache.insert("m", IDS[:123], run(IDS[:123])[1])
    assert cache.flush(short=False) == 0
    assert cache.flush() == 1
    again = PromptCache("100MB", DiskStore(tmp_path))
    assert again.fetch("m", IDS[:130]).cached == 123
    assert store.check() == []


def test_short_ends_that_wait_are_not_looked_at_after_each_answer(tmp_path, run, monkeypatch):
    """A host has thousands: each cost a lookup of every later answer."""
    store = DiskStore(tmp_path)
    looked = []
    lookup = store.lookup
    monkeypatch.setattr(store, "lookup", lambda *asked: looked.append(asked) or lookup(*asked))
    cache = PromptCache("100MB", store)
    counts = []
    for number in range(30):
        path = [*IDS[:40], 100 + number, 1, 2, 3]
        cache.insert("m", path, run(path)[1])
        looked.clear()
        cache.flush(short=False)
        counts.append(len(looked))
    assert counts[-1] == counts[2]
    assert cache.flush() == 29  # the first one was no end of a longer path
    again = PromptCache("100MB", DiskStore(tmp_path))
    assert again.fetch("m", [*IDS[:40], 110, 1, 2, 3, 4]).cached == 44
    assert store.check() == []


@pytest.mark.parametrize("rows", [Rows.COPY, Rows.KEEP_OUT])
def test_each_byte_is_written_once(tmp_path, run, rows):
    store = DiskStore(tmp_path)
    cache = PromptCache("100MB", store)
    rng = random.Random(5)
    path = IDS[:60]
    for _ in range(12):
        lease = cache.fetch("m", path, rows=Rows.GIVE)
        layers = run(path[lease.cached :], lease.layers)[1]
        cache.insert("m", path, layers, rows=rows)
        cache.flush(wait=False, short=False)
        answer = [*path, *rng.choices(range(100), k=rng.randrange(1, 30))]
        run(answer[len(path) :], layers)
        cache.insert("m", answer, layers, rows=Rows.RETURN)
        cache.flush(wait=False, short=False)
        path = [*answer, *rng.choices(range(100), k=20)] if rng.random() < 0.7 else path
    cache.flush()
    held = store.stats()
    assert held["written"] <= 1.1 * held["bytes"]
    assert held["tokens"] == cache.stats()["memory"]["tokens"]
    assert cache.check() + store.check() == []


def test_rows_that_moved_stay_away_until_the_last_insert(tmp_path, run):
    store = DiskStore(tmp_path)
    cache = PromptCache("100MB", store)
    cache.insert("m", IDS[:60], run(IDS[:60])[1])
    cache.flush()
    whole = cache.stats()["memory"]["bytes"]
    lease = cache.fetch("m", IDS[:90], rows=Rows.GIVE)
    layers = run(IDS[lease.cached : 90], lease.layers)[1]
    cache.insert("m", IDS[:90], layers, rows=Rows.KEEP_OUT)
    assert cache.flush() == 1
    assert cache.stats()["memory"]["bytes"] == whole / 2
    # Another process, and another request of this one, find all of it on the disk.
    for other in (PromptCache("100MB", DiskStore(tmp_path)), cache):
        assert other.fetch("m", IDS[:91]).cached == 90
    cache.insert("m", IDS[:90], layers, rows=Rows.RETURN)
    assert cache.stats()["memory"]["bytes"] == whole * 1.5
    assert cache.check() + store.check() == []


def test_what_must_not_reach_the_disk_does_not(tmp_path, run):
    store = DiskStore(tmp_path)
    cache = PromptCache("100MB", store)
    cache.insert("m", IDS[:50], run(IDS[:50])[1], on_disk=False)
    cache.flush()
    cache.trim_to(memory_bytes=0)
    assert store.stats()["spans"] == 0
    cache.insert("m", IDS[:50], run(IDS[:50])[1])
    cache.flush()
    assert store.stats()["tokens"] == 50


class Counting(DiskStore):
    """A store that counts what it is told of uses."""

    told = 0

    def used(self, spans):
        self.told += 1
        super().used(spans)


def test_hits_in_memory_keep_a_path_on_the_disk(tmp_path, run):
    kept, other = IDS[:40], IDS[60:100]
    store = Counting(tmp_path)
    cache = PromptCache("100MB", store)
    for ids in (kept, other):
        cache.insert("m", ids, run(ids)[1])
    cache.flush()
    for _ in range(5):
        lease = cache.fetch("m", [*kept, 1])
        assert lease.cached == 40
        del lease
    assert store.told == 0  # no request waits for the disk
    cache.flush()
    assert store.told == 1  # one transaction for all of them
    small = DiskStore(tmp_path, store.stats()["bytes"] + 100)  # for two of them
    fresh = IDS[110:150]
    last = PromptCache("100MB", small)
    last.insert("m", fresh, run(fresh)[1])
    last.flush()
    assert small.lookup("m", array("I", kept)).end == 40
    assert small.lookup("m", array("I", other)).end == 0


def test_many_hits_between_two_flushes_are_told_as_they_come(tmp_path, run):
    store = Counting(tmp_path)
    cache = PromptCache("100MB", store)
    cache.insert("m", IDS[:40], run(IDS[:40])[1])
    cache.flush()
    for _ in range(70):
        cache.fetch("m", [*IDS[:40], 1])
    cache._writer.wait()
    assert store.told == 1
    cache.flush()
    assert store.told == 2


def test_hits_of_what_is_not_on_the_disk_tell_it_nothing(tmp_path, run):
    store = Counting(tmp_path)
    cache = PromptCache("100MB", store)
    cache.insert("m", IDS[:40], run(IDS[:40])[1], on_disk=False)
    cache.fetch("m", [*IDS[:40], 1])
    cache.flush()
    assert store.told == 0


def test_rows_that_are_with_a_lease_are_written_once_they_are_back(tmp_path):
    """Its states stay in memory meanwhile; a file of these alone would leave a hole in the path."""
    cache = PromptCache("100MB", DiskStore(tmp_path))
    cache.insert("m", IDS[:50], [rows(IDS[:50]), state(IDS[:50])])
    lease = cache.fetch("m", IDS[:60], rows=Rows.GIVE)
    assert lease.cached == 50
    cache.flush()
    assert not DiskStore(tmp_path).lookup("m", array("I", IDS[:60])).spans
    longer = [rows(IDS[:60]), state(IDS[:60])]
    cache.insert("m", IDS[:60], longer, rows=Rows.RETURN)
    cache.flush()
    again = PromptCache("100MB", DiskStore(tmp_path)).fetch("m", IDS[:61])
    assert again.cached == 60
    assert held(again.layers) == held([rows(IDS[:60]), state(IDS[:60])])
