"""Packs: several spans of a path in one file, each of them still itself."""

import os
import time
from array import array

import pytest
import worlds

from llm_mlx_promptcache.cache.disk import pack_file
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.prompt_cache import PromptCache


@pytest.fixture
def store(tmp_path):
    made = DiskStore(tmp_path / "cache", "1GB")
    yield made
    assert made.check() == []
    assert made.stats()["bytes"] == worlds.on_disk(made)


def found(store, ids):
    return store.lookup(worlds.NAMESPACE, array("I", ids))


def test_a_path_of_fifty_turns_is_one_file_and_reads_the_same(store):
    ids = worlds.turns(store, 50)
    before = store.listing()
    assert worlds.compacted(store) == 1
    assert len(worlds.names(store)) == 1
    for end in (len(ids), len(ids) - 5, 333, 12, 7):
        assert worlds.get(DiskStore(store.folder), ids[:end]) == end
    after = store.listing()
    same = [(s.file_id, s.parent, s.start, s.tokens, s.tier, s.resumes) for s in before.spans]
    assert [
        (s.file_id, s.parent, s.start, s.tokens, s.tier, s.resumes) for s in after.spans
    ] == same


def test_law_3_each_span_keeps_its_uses_its_tier_and_its_pin(store):
    ids = worlds.turns(store, 6)
    assert store.pin(worlds.NAMESPACE, array("I", ids[:36]), pinned=True)
    worlds.get(store, ids[:24])
    store.tend()
    before = {s.file_id: (s.hits, s.used_at, s.pinned, s.tier) for s in store.listing().spans}
    assert worlds.compacted(store) == 2  # never across the pin
    after = {s.file_id: (s.hits, s.used_at, s.pinned, s.tier) for s in store.listing().spans}
    assert after == before


def test_what_hangs_on_a_packed_span_hangs_there_still(store):
    ids = worlds.turns(store, 6)
    branch = [*ids[:30], 1001, 1002, 1003]
    worlds.put(store, branch)
    worlds.compacted(store)
    later = [*ids[:50], 1004, 1005]
    worlds.put(store, later)
    for path in (ids, branch, later):
        assert worlds.get(DiskStore(store.folder), path) == len(path)


def test_a_conversation_goes_on_behind_its_pack_and_is_packed_again(store):
    ids = worlds.turns(store, 6)
    worlds.compacted(store)
    longer = [*ids, *range(20)]
    worlds.put(store, longer)
    assert len(worlds.names(store)) == 2
    assert worlds.compacted(store) == 1
    assert len(worlds.names(store)) == 1
    assert worlds.get(DiskStore(store.folder), longer) == len(longer)


def test_what_memory_has_of_a_pack_is_not_read_for_it(store):
    ids = worlds.turns(store, 6)
    worlds.compacted(store)
    cache = PromptCache("1GB", DiskStore(store.folder))
    cache.insert(worlds.NAMESPACE, ids[:30], worlds.layers_for(ids[:30]))
    lease = cache.fetch(worlds.NAMESPACE, [*ids, 5])
    assert (lease.cached, lease.from_disk) == (len(ids), len(ids) - 30)
    assert worlds.right(lease.layers, ids)


def test_what_leaves_a_pack_is_dead_until_a_third_is_and_then_gone(tmp_path):
    store = DiskStore(tmp_path, "1GB")
    ids = worlds.turns(store, 9)
    worlds.compacted(store)
    whole = store.stats()["bytes"]
    dead = []
    for left in range(8, 4, -1):
        last = found(store, ids).spans[-1].file_id
        store._index.run(lambda index, last=last: gone(index, last), None)
        dead.append(store.stats()["dead"])
        assert store.stats()["bytes"] == worlds.on_disk(store)
        while not store.tend():
            pass
        assert worlds.get(DiskStore(tmp_path), ids) == left * 12
        assert store.check() == []
    assert dead[:3] == pytest.approx([whole / 9, 2 * whole / 9, whole / 3], rel=0.02)
    assert dead[3] < dead[2]
    assert store.stats()["dead"] == dead[3]


def gone(index, file_id):
    with index.transaction():
        return index.drop(file_id)


def test_the_last_span_takes_its_pack_along(store):
    worlds.turns(store, 5)
    worlds.compacted(store)
    store.label(worlds.NAMESPACE, "a/model", "its identity")
    store.tend()
    assert store.clear(model="a/model") > 0
    assert worlds.names(store) == []


@pytest.mark.parametrize("share", [0.95, 0.5, 0.2, 0.0])
def test_p5_the_budget_counts_dead_bytes_too(tmp_path, share):
    store = DiskStore(tmp_path, "1GB")
    for seed in range(5):
        worlds.turns(store, 6, seed)
    worlds.compacted(store)
    most = int(store.stats()["bytes"] * share)
    small = DiskStore(tmp_path, most)
    for _ in range(200):
        if small.tend():
            break
    assert small.stats()["bytes"] == worlds.on_disk(small) <= most
    assert small.check() == []


def test_p8_what_is_cleared_by_age_leaves_no_token_in_a_pack(tmp_path):
    store = DiskStore(tmp_path, "1GB")
    clock = [1_000_000.0]
    store._files.now = lambda: clock[0]
    ids = worlds.turns(store, 6)
    worlds.compacted(store)
    clock[0] += 10 * 86_400
    worlds.get(store, ids[:36])
    store.tend()
    (pack,) = worlds.names(store)
    assert store.clear(days=5) > 0
    (left,) = worlds.names(store)
    assert left != pack
    assert store.stats()["dead"] == 0
    secret = array("I", ids[40:50]).tobytes()
    assert not any(secret in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert worlds.get(DiskStore(tmp_path), ids) == 36
    assert store.check() == []


def test_no_step_reads_or_writes_more_than_its_share(store, monkeypatch):
    """So who asks meanwhile waits for no more than one of them."""
    ids = worlds.turns(store, 10, length=60)
    monkeypatch.setattr(pack_file, "STEP_BYTES", 1000)
    real, done = os.readv, []

    def readv(descriptor, buffers):
        count = real(descriptor, buffers)
        done.append(count)
        return count

    written = pack_file.UnpublishedPack.put

    def put(pack, block):
        assert len(block) <= 1000 or not sum(done)  # but for the header and the tokens
        done.append(len(block))
        written(pack, block)

    steps = store.compact()
    next(steps)
    while len(worlds.names(store)) == 10:  # all are opened, a step each
        next(steps)
    monkeypatch.setattr(os, "readv", readv)
    monkeypatch.setattr(pack_file.UnpublishedPack, "put", put)
    most = 0
    for _ in steps:
        most = max(most, sum(done))
        done.clear()
    assert 0 < most <= 1000 + 16 * 11  # a digest of each file at the end
    assert worlds.get(DiskStore(store.folder), ids) == len(ids)


def test_a_compaction_that_is_broken_off_leaves_everything(store):
    ids = worlds.turns(store, 8)
    before = worlds.names(store)
    steps = store.compact()
    for _ in range(9):
        next(steps)
    assert len(worlds.names(store)) == len(before) + 1
    steps.close()
    assert worlds.names(store) == before
    assert worlds.get(DiskStore(store.folder), ids) == len(ids)


def test_a_fork_takes_no_part_in_its_parents_compaction(store):
    worlds.turns(store, 8)
    steps = store.compact()
    for _ in range(9):
        next(steps)
    child = os.fork()
    if not child:
        steps.close()
        os._exit(0)
    os.waitpid(child, 0)
    *_, done = steps
    assert done.packs == 1


def test_what_was_used_just_now_and_few_files_are_left_alone(store):
    ids = worlds.turns(store, 3)
    assert [*store.compact(rested=60)] == []
    later = time.time() + 120
    store._files.now = lambda: later
    assert [*store.compact(rested=60)] == []
    worlds.put(store, [*ids, 1, 2, 3])
    store._files.now = lambda: later + 120
    assert [*store.compact(rested=60)][-1].packs == 1
