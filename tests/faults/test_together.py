"""Several processes, threads and forks on one folder are correct without coordinating (P5, P6)."""

import os
import signal
import sqlite3
import subprocess
import threading

import pytest

from llm_mlx_promptcache.cache.disk.budget import FolderBudget
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.prompt_cache import PromptCache

SPANS = 14_000  # bytes: a handful of spans, so that everybody evicts all the time


def ended_well(processes, timeout=120):
    """The numbers that children printed; an error, or anything on stderr, is a failure."""
    said = []
    for process in processes:
        out, error = process.communicate(timeout=timeout)
        assert process.returncode == 0, error
        assert error == ""
        said.append(int(out))
    return said


def all_at_once(child, worlds, folder, count, steps):
    budget = str(SPANS)
    crowd = [child("work", folder, 20 + n, str(steps), budget) for n in range(count)]
    assert ended_well(crowd) == [steps] * count
    store = DiskStore(folder, SPANS)
    assert store.check() == []
    assert store.stats()["bytes"] <= SPANS
    assert sum(p.stat().st_size for p in store.spans_folder.iterdir()) <= SPANS
    return store


def test_p5_p6_processes_that_insert_read_and_evict_at_once_keep_the_budget(
    child, worlds, tmp_path
):
    all_at_once(child, worlds, tmp_path, 3, 100)


@pytest.mark.soak
def test_p5_p6_four_processes_for_long(child, worlds, tmp_path):
    all_at_once(child, worlds, tmp_path, 4, 1000)


def test_p6_two_processes_that_store_the_same_store_it_once(child, worlds, tmp_path):
    ended_well([child("once", tmp_path, 5) for _ in range(3)])
    store = DiskStore(tmp_path)
    assert store.stats()["spans"] == 1
    assert store.check() == []
    assert worlds.get(store, worlds.paths(5)[0]) == len(worlds.paths(5)[0])


def test_p8_clear_in_a_loop_beside_readers_and_writers(child, worlds, tmp_path):
    crowd = [child("work", tmp_path, 30 + n, "120") for n in range(2)]
    crowd.append(child("clear", tmp_path, 1, "60"))
    ended_well(crowd)
    store = DiskStore(tmp_path)
    assert store.check() == []
    store.clear()
    assert list(store.spans_folder.iterdir()) == []
    assert store.stats()["bytes"] == 0


NEEDLE = list(range(700_000_000, 700_000_040))


def holding_the_needle(folder):
    """The files in which a token of the path that was cleared can still be read.

    Another process reads: who closes the index's files drops the locks that SQLite holds in the
    same process, and the next one to come cuts the memory that they share from under it.
    """
    needle = NEEDLE[20].to_bytes(4, "little")
    found = []
    for path in folder.rglob("*"):
        if path.is_file():  # or it was another process's, gone meanwhile
            read = subprocess.run(["cat", path], capture_output=True, check=False)
            found += [path.name] if needle in read.stdout else []
    return found


def test_p8_after_clear_no_token_is_left_in_any_file(worlds, tmp_path):
    store = DiskStore(tmp_path)
    worlds.put(store, NEEDLE)
    assert holding_the_needle(tmp_path)
    store.clear()
    assert holding_the_needle(tmp_path) == []


def test_p8_no_token_is_left_though_others_read_and_write_meanwhile(child, worlds, tmp_path):
    crowd = [child("work", tmp_path, 50 + n, "150") for n in range(2)]
    store = DiskStore(tmp_path)
    while any(process.poll() is None for process in crowd):
        worlds.put(store, NEEDLE)
        assert holding_the_needle(tmp_path)
        store.clear()
        assert holding_the_needle(tmp_path) == []
    ended_well(crowd)
    assert store.check() == []


def test_p8_clear_says_so_where_a_reader_holds_the_log(worlds, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("llm_mlx_promptcache.cache.disk.index_log._BUSY_SECONDS", 0.2)
    monkeypatch.setattr("llm_mlx_promptcache.cache.disk.shared_index.COMMAND_SECONDS", 0.2)
    store = DiskStore(tmp_path)
    worlds.put(store, NEEDLE)
    reader = sqlite3.connect(tmp_path / "index.sqlite", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM spans").fetchone()
    store.clear()
    assert "may be left" in caplog.text
    assert list(store.spans_folder.iterdir()) == []
    reader.close()
    caplog.clear()
    store.clear()
    assert not caplog.records
    assert holding_the_needle(tmp_path) == []


class Through:
    """An index's connection whose statements go through `execute(real, query, ...)`."""

    def __init__(self, real, execute):
        self._real, self._execute = real, execute

    def __getattr__(self, name):
        return getattr(self._real, name)

    def execute(self, query, *more):
        return self._execute(self._real, query, *more)


def test_p8_clear_tells_why_tokens_may_be_left(worlds, tmp_path, caplog, monkeypatch):
    store = DiskStore(tmp_path)
    worlds.put(store, NEEDLE)

    def execute(real, query, *more):
        if query == "VACUUM":
            raise sqlite3.OperationalError("database or disk is full")
        return real.execute(query, *more)

    index = store._index._open(1.0)
    monkeypatch.setattr(index.log, "_db", Through(index.db, execute))
    assert store.clear() > 0
    (record,) = caplog.records
    assert "(database or disk is full)" in record.getMessage()


def test_p8_clear_waits_for_anothers_checkpoint(worlds, tmp_path, monkeypatch):
    """SQLite refuses a second checkpoint at once, whatever its timeout."""
    store = DiskStore(tmp_path)
    worlds.put(store, NEEDLE)
    refused = []

    def execute(real, query, *more):
        if "TRUNCATE" in query and len(refused) < 2:
            refused.append(query)
            return real.execute("SELECT 1, -1, -1")
        return real.execute(query, *more)

    index = store._index._open(1.0)
    monkeypatch.setattr(index.log, "_db", Through(index.db, execute))
    store.clear()
    assert len(refused) == 2
    assert holding_the_needle(tmp_path) == []


def test_p8_clear_says_so_where_a_writer_holds_the_index(worlds, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("llm_mlx_promptcache.cache.disk.index._BUSY_SECONDS", 0.2)
    monkeypatch.setattr("llm_mlx_promptcache.cache.disk.shared_index.COMMAND_SECONDS", 0.2)
    store = DiskStore(tmp_path)
    worlds.put(store, NEEDLE)
    writer = sqlite3.connect(tmp_path / "index.sqlite", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    assert store.clear() == 0
    assert "is not cleared" in caplog.text
    writer.close()
    assert store.clear() > 0
    assert holding_the_needle(tmp_path) == []


def test_a_fork_reopens_the_index_and_leaves_the_parents_alone(worlds, tmp_path):
    store = DiskStore(tmp_path)
    first, second = worlds.paths(6)[:2]
    worlds.put(store, first)
    span = worlds.new_span(list(range(5000, 5020)))
    child = os.fork()
    if not child:  # no MLX here: its threads stayed behind
        stored = store.save(span)
        found = store.lookup(span.namespace, span.path).end
        os._exit(0 if stored and found == 20 else 1)
    worlds.put(store, second)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.lookup(span.namespace, span.path).end == 20
    assert store.check() == []


def test_a_writer_of_the_parent_is_not_waited_for_in_a_fork(worlds, tmp_path):
    cache = PromptCache("1GB", DiskStore(tmp_path))
    ids = worlds.paths(6)[0]
    cache.insert("m", ids, worlds.layers_for(ids))
    cache.flush(wait=False)
    child = os.fork()
    if not child:
        signal.alarm(60)  # which ends a child that waits for a thread it does not have
        cache._writer.wait()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    cache.flush()


def test_threads_of_one_process_share_a_store(worlds, tmp_path):
    store = DiskStore(tmp_path)
    spans = [worlds.new_span([seed, *range(30)]) for seed in range(40)]
    failures = []

    def work(mine):
        for span in mine:
            if not store.save(span) or store.lookup("m", span.path).end != 31:
                failures.append(span.path[0])

    threads = [threading.Thread(target=work, args=(spans[n::8],)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.stats()["spans"] == 40
    assert store.check() == []


def test_a_thread_that_asks_for_the_budget_meanwhile_gets_no_old_answer():
    budget, seen = FolderBudget(None), []

    def room():
        if not seen:
            seen.append(None)
            other = threading.Thread(target=lambda: seen.append(budget.most(0, room)))
            other.start()
            other.join()
        return 1000, 1000

    assert budget.most(0, room) == 100
    assert seen[1:] == [100]


def test_pinned_paths_are_evicted_last_and_pins_outlive_the_process(worlds, tmp_path):
    store = DiskStore(tmp_path, SPANS)
    pinned = worlds.paths(40)[0]
    cache = PromptCache("1GB", store)
    cache.insert("m", pinned, worlds.layers_for(pinned))
    cache.pin("m", pinned)
    for seed in range(41, 60):
        worlds.put(store, worlds.paths(seed)[0])
    assert worlds.get(DiskStore(tmp_path, SPANS), pinned) == len(pinned)
    PromptCache("1GB", DiskStore(tmp_path, SPANS)).unpin("m", pinned)
    for seed in range(60, 90):
        worlds.put(store, worlds.paths(seed)[0])
    with pytest.raises(ValueError, match="nothing is pinned"):
        PromptCache("1GB", store).unpin("m", pinned)
    assert store.check() == []


def test_the_least_valuable_spans_are_evicted_first_and_suffixes_before_prefixes(worlds, tmp_path):
    store = DiskStore(tmp_path, "1GB")
    system, user = worlds.paths(70)[0], worlds.paths(71)[0]
    cache = PromptCache("1GB", store)
    cache.insert("m", system, worlds.layers_for(system), "system")
    cache.flush()
    cache.insert("m", user, worlds.layers_for(user), "assistant")
    cache.insert("m", [*system, 7], worlds.layers_for([*system, 7]), "assistant")
    cache.flush()
    held = store.stats()["bytes"]
    small = DiskStore(tmp_path, held - 1)
    worlds.put(small, worlds.paths(72)[0])
    assert worlds.get(small, system) == len(system)
    assert small.stats()["bytes"] < held
