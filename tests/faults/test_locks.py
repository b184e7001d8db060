"""Others hold the index, the disk is slow or full: a lookup waits for nobody, and nothing is lost.

Waits are counted, on clocks that the tests turn: how long they are is set where they are made.
"""

import os
import sqlite3
import subprocess
import sys
from array import array

import pytest
from worlds import full_file

from llm_mlx_promptcache.cache.disk import repair, shared_index, upkeep, writer
from llm_mlx_promptcache.cache.disk.budget import ROWS
from llm_mlx_promptcache.cache.disk.files import Files, locked
from llm_mlx_promptcache.cache.disk.index import Index
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.prompt_cache import PromptCache

HOLD = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    db.execute(statement).fetchall()
print("held", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""
WRITES = ["BEGIN IMMEDIATE"]
ALL = ["PRAGMA locking_mode=EXCLUSIVE", "BEGIN EXCLUSIVE", "UPDATE totals SET tick = tick"]


@pytest.fixture
def holder():
    """`holder(folder, statements)`: another process, stopped after these; `.end()` ends it."""
    started = []

    def start(folder, statements):
        command = [sys.executable, "-c", HOLD, str(folder / "index.sqlite"), *statements]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        os.waitpid(process.pid, os.WUNTRACED)
        return process

    yield start
    for process in started:
        end(process)


def end(process):
    process.kill()
    process.wait()
    process.stdout.close()


class Played(Files):
    """A clock that stands still until it is turned."""

    seconds = 1000.0

    def clock(self):
        return self.seconds


@pytest.fixture
def tries(monkeypatch):
    """The waits that each connection, change and first query of a look would have had, in order."""
    made = []
    init, begin, snapshot = Index.__init__, Index.transaction, Index.snapshot

    def connecting(self, path, wait=5.0, *, new=False):
        made.append(wait)
        init(self, path, wait, new=new)

    def beginning(self):
        made.append(self._wait)
        return begin(self)

    def looking(self):
        made.append(self._wait)
        return snapshot(self)

    monkeypatch.setattr(Index, "__init__", connecting)
    monkeypatch.setattr(Index, "transaction", beginning)
    monkeypatch.setattr(Index, "snapshot", looking)
    return made


@pytest.fixture
def short_waits(monkeypatch):
    """Near-zero waits, except in lookups."""
    monkeypatch.setattr(shared_index, "WRITE_SECONDS", 0.05)
    monkeypatch.setattr(shared_index, "COMMAND_SECONDS", 0.05)
    monkeypatch.setattr(writer, "FLUSH_SECONDS", 0.1)


def test_law_7_two_looks_wait_less_than_50_ms():
    assert 2 * shared_index.LOOK_SECONDS < 0.05


def test_law_7_a_writer_that_was_stopped_holds_up_no_lookup(holder, worlds, tmp_path, ids, tries):
    worlds.put(DiskStore(tmp_path), ids)
    holder(tmp_path, WRITES)
    tries.clear()
    store = DiskStore(tmp_path)
    assert worlds.get(store, ids) == len(ids)
    assert set(tries) == {shared_index.LOOK_SECONDS}
    assert store._index._index is None  # no connection that writes was even opened


def test_law_7_an_index_that_is_locked_whole_is_tried_once_and_said_so(
    holder, worlds, tmp_path, ids, tries, caplog
):
    filled = DiskStore(tmp_path)
    worlds.put(filled, ids)
    filled.close()
    held = holder(tmp_path, ALL)
    tries.clear()
    files = Played()
    cache = PromptCache("1GB", DiskStore(tmp_path, files=files))
    for _ in range(3):
        lease = cache.fetch("m", [*ids, 5])
        assert (lease.cached, lease.why.reason) == (0, "locked")
    assert tries == [shared_index.LOOK_SECONDS]
    files.seconds += 0.3
    assert cache.fetch("m", [*ids, 5]).why.reason == "locked"
    assert len(tries) == 2
    end(held)
    files.seconds += 1
    assert cache.fetch("m", [*ids, 5]).why.reason == "whole"
    assert not caplog.records


def test_law_7_an_index_that_another_one_rebuilds_is_not_waited_for(
    worlds, tmp_path, ids, monkeypatch
):
    store = DiskStore(tmp_path)
    worlds.put(store, ids)
    store.close()
    for path in tmp_path.glob("index.sqlite*"):
        path.unlink()
    waits, join = [], repair.Mending.join
    monkeypatch.setattr(
        repair.Mending,
        "join",
        lambda self, seconds=None: waits.append(seconds) or join(self, seconds),
    )
    files = Played()
    store = DiskStore(tmp_path, files=files)
    with locked(tmp_path):  # as who rebuilds it
        lease = PromptCache("1GB", store).fetch("m", [*ids, 5])
        assert lease.why.reason == "locked"
        assert waits == [shared_index.LOOK_SECONDS]
    files.seconds += 1
    assert worlds.get(store, ids) == len(ids)


@pytest.mark.usefixtures("short_waits")
def test_p4_a_time_out_is_told_once_and_pauses_grow(
    holder, worlds, tmp_path, ids, tries, caplog, monkeypatch
):
    files = Played()
    store = DiskStore(tmp_path, files=files)
    worlds.put(store, ids)
    held = holder(tmp_path, WRITES)
    other = worlds.new_span([7, 8, 9])
    tries.clear()
    assert not store.save(other)
    assert tries.count(0.05) == 1
    pauses = []
    for _ in range(8):
        pauses.append(store.pause)
        tries.clear()
        assert not store.save(other)
        assert tries == []  # nothing is tried in a pause
        files.seconds += store.pause
        assert not store.save(other)
        assert tries == [0.0]  # and nobody waits after one, nor is a file written
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    end(held)
    files.seconds += 60
    assert store.save(other)
    assert store.pause == 0
    assert store.check() == []
    assert not caplog.records  # who has spans waiting tells


@pytest.mark.usefixtures("short_waits")
def test_p4_a_flush_waits_once_tells_what_is_not_written_and_writes_it_later(
    holder, worlds, tmp_path, ids, caplog, monkeypatch
):
    store = DiskStore(tmp_path)
    worlds.put(store, ids)
    held = holder(tmp_path, WRITES)
    cache = PromptCache("1GB", store)
    for number in range(3):
        path = [number, *range(30)]
        cache.insert("m", path, worlds.layers_for(path))
        cache.flush()
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "not in the disk cache yet, and lost if this process ends now: 1 span;" in caplog.text
    waits = []
    inner = writer.threading.Condition.wait_for
    monkeypatch.setattr(
        writer.threading.Condition,
        "wait_for",
        lambda self, test, timeout=None: waits.append(timeout) or inner(self, test, timeout),
    )
    cache.flush()
    assert [wait for wait in waits if wait == writer.FLUSH_SECONDS] == []
    # What waits is found, though memory has let go of it and nobody has written it.
    cache.trim_to(memory_bytes=0)
    assert cache.fetch("m", [1, *range(30), 5]).cached == 31
    end(held)
    store.try_again()
    monkeypatch.undo()
    while cache._writer.wait():
        store.try_again()
    assert store.stats()["spans"] == 4
    assert store.check() == []


@pytest.mark.usefixtures("short_waits")
def test_p4_a_flush_takes_its_turn_among_processes_that_go_on_writing(
    holder, worlds, tmp_path, ids, tries
):
    files = Played()
    store = DiskStore(tmp_path, files=files)
    worlds.put(store, ids)
    holder(tmp_path, WRITES)
    other = worlds.new_span([7, 8, 9])
    assert not store.save(other)
    for waits in (0.0, shared_index.PRESSED_SECONDS, 0.0):
        tries.clear()
        if waits:
            store.try_again()  # somebody waits for this try, and for no other
        files.seconds += 0 if waits else store.pause
        assert not store.save(other)
        assert tries == [waits]


def test_p4_a_process_ends_soon_and_with_one_warning_beside_a_stopped_one(
    holder, child, worlds, tmp_path, ids
):
    worlds.put(DiskStore(tmp_path), ids)
    holder(tmp_path, WRITES)
    out, error = child("once", tmp_path, 5).communicate(timeout=60)
    assert out == "1\n"
    assert error.count("\n") == 1
    assert "another process holds the index locked" in error


def test_law_7_a_fetch_writes_nothing_whatever_it_finds(worlds, tmp_path, ids, tries):
    filled = DiskStore(tmp_path)
    worlds.put(filled, ids)
    worlds.put(filled, [*ids[:5], 900, 901])
    path = max(filled.spans_folder.glob("*.safetensors"), key=lambda p: p.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1])
    filled.close()
    store = DiskStore(tmp_path)
    cache = PromptCache("1GB", store)
    assert cache.fetch("m", [*ids, 5]).why.reason == "unreadable"
    assert store._index._index is None
    cache.flush()  # then it is written down, behind everybody's back
    assert filled.lookup("m", array("I", ids)).end < len(ids)
    assert store.check() == []


def test_p4_between_two_steps_of_an_eviction_others_write(worlds, tmp_path, monkeypatch):
    store = DiskStore(tmp_path, "1GB")
    span = worlds.new_span(list(range(5)))
    for number in range(3 * ROWS):
        ids = array("I", [1000 + number, 1, 2, 3, 4])
        assert store.save(span._replace(path=ids))
    others = []

    def meanwhile(seconds):
        other = sqlite3.connect(tmp_path / "index.sqlite", timeout=0, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        others.append(other.execute("SELECT spans FROM totals").fetchone()[0])
        other.close()

    monkeypatch.setattr(upkeep.time, "sleep", meanwhile)
    small = DiskStore(tmp_path, store.stats()["bytes"] // 2)
    small.tend()
    assert others == [2 * ROWS]
    assert small.stats()["bytes"] <= store.stats()["bytes"]
    assert store.check() == []


class Filling(Files):
    """A disk that is full while `full`."""

    seconds = 0.0
    full = False
    tried = 0

    def clock(self):
        return self.seconds

    def create(self, path):
        self.tried += 1
        file = super().create(path)
        if not self.full:
            return file
        file.close()
        return full_file()


def test_p4_a_disk_that_was_full_is_tried_again_and_told_once_each_time(worlds, tmp_path, caplog):
    files = Filling()
    store = DiskStore(tmp_path, files=files)
    spans = [worlds.new_span([number, 1, 2]) for number in range(4)]
    for fullness in (1, 2):
        files.full, files.tried = True, 0
        for _ in range(3):
            assert not store.save(spans[0])
        assert files.tried == 1
        for seconds in (1, 2, 4):
            files.seconds += seconds
            assert not store.save(spans[0])
        assert files.tried == 4
        assert len(caplog.records) == fullness
        files.full = False
        assert not store.save(spans[fullness])  # nothing is tried before the pause is over
        files.seconds += 8
        assert store.save(spans[fullness])
    assert store.check() == []


@pytest.mark.parametrize("speed", [None, 1.0, 1e9])
def test_law_7_what_a_slow_disk_would_give_later_is_prefilled_and_said_so(
    worlds, tmp_path, ids, speed
):
    worlds.put(DiskStore(tmp_path), ids)
    cache = PromptCache("1GB", DiskStore(tmp_path))
    cache._lookup.bandwidth.measured(10 << 20, 1000.0)
    lease = cache.fetch("m", [*ids, 5], prefill_speed=speed)
    if speed == 1e9:
        assert (lease.cached, lease.why.reason, lease.layers) == (0, "slow", None)
        # It is tried again in the end: nobody measures a disk that nobody reads.
        fetched = [cache.fetch("m", [*ids, 5], prefill_speed=1e7).cached for _ in range(80)]
        assert fetched[0] == 0
        assert fetched[-1] == len(ids)
    else:
        assert lease.cached == len(ids)


def test_law_7_beside_a_slow_disk_memory_is_still_used(worlds, tmp_path, ids):
    worlds.put(DiskStore(tmp_path), ids)
    cache = PromptCache("1GB", DiskStore(tmp_path))
    cache._lookup.bandwidth.measured(10 << 20, 1000.0)
    cache.insert("m", ids[:9], worlds.layers_for(ids[:9]))
    lease = cache.fetch("m", [*ids, 5], prefill_speed=1e9)
    assert (lease.cached, lease.why.reason) == (9, "slow")
    assert worlds.right(lease.layers, ids[:9])
