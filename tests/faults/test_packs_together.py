"""Packs are made beside readers, writers, sweeps and evictions, and no lock is kept (P5 to P8)."""

import errno
import random
import threading

import pytest
from packed_talks import dropped_alone, names, whole
from test_claims import Waiting

from llm_mlx_promptcache.cache.disk.files import Files
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.disk.upkeep import Upkeep


@pytest.mark.parametrize("call", ["check", "fix", "sweep", "every"])
@pytest.mark.parametrize("step", ["create", "before the name", "removing"])
def test_p6_nobody_takes_what_is_being_packed_for_a_leftover(worlds, talk, step, call):
    folder, paths = talk

    class Removing(Waiting):
        def unlink(self, path):
            self._wait("removing")
            return super().unlink(path)

    files = Removing(step)
    thread = threading.Thread(target=worlds.compacted, args=(DiskStore(folder, files=files),))
    thread.start()
    assert files.there.wait(60)
    other, before = DiskStore(folder), set(names(folder))
    if call in ("check", "fix"):
        assert other.check(fix=call == "fix") == []
    else:
        other.sweep(every=call == "every")
    assert set(names(folder)) == before
    for path in paths:
        assert worlds.get(other, path) == len(path)
    files.go.set()
    thread.join()
    whole(worlds, folder, paths)
    assert len(names(folder)) == 2


class PackedMeanwhile(Files):
    """A pack is made between a lookup and the opening of the n-th of its files."""

    def __init__(self, at, make):
        self.at, self.make = at, make

    def open(self, path):
        self.at -= 1
        if self.at == 0:
            self.make()
        return super().open(path)


@pytest.mark.parametrize("at", range(1, 6))
def test_p6_who_looks_a_path_up_while_it_is_packed_has_all_of_it(worlds, talk, at):
    folder, (ids, _) = talk
    other = DiskStore(folder, "20MB")
    files = PackedMeanwhile(at, lambda: worlds.compacted(other))
    store = DiskStore(folder, "20MB", files=files)
    assert worlds.get(store, ids) == len(ids)
    assert files.at <= 0
    store.tend()
    assert worlds.get(store, ids) == len(ids)


def test_p6_what_changes_while_it_is_packed_is_left_as_it_is(worlds, talk):
    folder, (ids, branch) = talk
    store, other = DiskStore(folder, "20MB"), DiskStore(folder, "20MB")
    steps = store.compact()
    for _ in range(7):
        next(steps)
    last = other.lookup(worlds.NAMESPACE, worlds.array("I", ids)).spans[-1].file_id
    other._index.run(lambda index: dropped(index, other, last), None)
    assert not [done for done in steps if done.packs]
    assert worlds.get(DiskStore(folder), branch) == len(branch)
    assert store.check() == []


def dropped(index, store, file_id):
    with index.transaction():
        index.drop(file_id)
        store._folder.span(file_id).unlink()


def test_p5_p6_packs_are_made_beside_readers_writers_and_evictions(worlds, child, tmp_path):
    """A budget of a few spans: what is packed is evicted and stored anew all the time."""
    crowd = [child("work", tmp_path, seed, "40", "60KB") for seed in (1, 2)]
    crowd += [child("compact", tmp_path, 1, "60")]
    for process in crowd:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    store = DiskStore(tmp_path, "60KB")
    store.sweep(every=True)
    assert store.check() == []
    for _ in range(100):
        if store.tend():
            break
    assert store.stats()["bytes"] <= 60_000


@pytest.mark.soak
def test_p3_packers_and_writers_are_killed_together(worlds, child, tmp_path):
    rng = random.Random(5)
    for number in range(60):
        crowd = [child("tell", tmp_path, 10 + number % 3), child("compact", tmp_path, 1, "999")]
        crowd[0].stdout.read(rng.randint(1, 60))
        for process in crowd:
            process.kill()
            process.wait()
        store = DiskStore(tmp_path, "20MB")
        store.sweep(every=True)
        assert store.check() == []
        for path in worlds.paths(1, 30):
            worlds.get(store, path)
        store.close()


def test_law_7_a_compaction_keeps_no_lock_between_two_steps(worlds, talk):
    """So who writes meanwhile waits for one transaction at most."""
    folder, _ = talk
    store, other = DiskStore(folder, "20MB"), DiskStore(folder, "20MB")
    tried = 0
    for _ in store.compact():
        assert other._index.run(lambda index: locked_for_us(index), otherwise=False)
        tried += 1
    assert tried > 5


def locked_for_us(index):
    index.wait_for_locks(0.0)
    with index.transaction():
        return True


def test_p8_a_pack_that_can_not_be_written_anew_is_cleared_whole(worlds, packed, monkeypatch):
    folder, ids, _, path = packed
    files = worlds.Failing(errno.ENOSPC, 0)
    store = DiskStore(folder, "20MB", files=files)
    store.label(worlds.NAMESPACE, "a/model", "its identity")
    store.tend()
    last = store.lookup(worlds.NAMESPACE, worlds.array("I", ids)).spans[-1].file_id
    store._index.run(lambda index: dropped_alone(index, last), None)
    real = Upkeep.clear_some
    files.at, files.sticky = -1, False

    def cleared(upkeep, *arguments, **named):
        found = real(upkeep, *arguments, **named)
        monkeypatch.setattr(files, "create", full)
        return found

    monkeypatch.setattr(Upkeep, "clear_some", cleared)
    store.clear(days=100)
    assert not path.exists()
    assert store.check() == []


def full(path):
    raise OSError(errno.ENOSPC, "full")
