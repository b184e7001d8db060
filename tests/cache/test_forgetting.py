"""P8: forgotten spans are nowhere: not in memory, not on their way to the disk, not in leases."""

import random
import time
from array import array

import mlx.core as mx
import pytest
from plain_layers import rows

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.disk.writer import QueueState
from llm_mlx_promptcache.cache.insertion import PathEnd, Rows
from llm_mlx_promptcache.cache.memory.ages import Ages
from llm_mlx_promptcache.cache.prompt_cache import PromptCache

IDS = random.Random(17).choices(range(100), k=90)
OURS, THEIRS = "0" * 32, "1" * 32
DAY = 86400.0


def filled(store):
    """A cache with the same path in the namespaces of two models."""
    cache = PromptCache("100MB", store)
    for namespace, name in ((OURS, "ours"), (THEIRS, "theirs")):
        cache.label(namespace, name, f"identity of {name}")
        cache.insert(namespace, IDS[:60], [rows(IDS[:60])])
    return cache


def there(cache, store):
    """The namespaces with spans in memory, and those with spans on the disk."""
    in_memory = {str(node.model) for node in cache._tree.nodes()}
    return in_memory, {span.namespace for span in store.listing().spans}


def known(cache, namespace):
    return cache.fetch(namespace, [*IDS[:60], 0]).cached


@pytest.mark.parametrize(
    ("model", "left"), [(None, set()), ("ours", {THEIRS}), (OURS[:8], {THEIRS}), (OURS[:7], None)]
)
@pytest.mark.parametrize("pinned", [False, True])
def test_p8_what_is_forgotten_is_in_no_place_and_all_else_stays(tmp_path, model, left, pinned):
    store = DiskStore(tmp_path)
    cache = filled(store)
    cache.flush()
    if pinned:
        cache.pin(OURS, IDS[:40])
    left = {OURS, THEIRS} if left is None else left
    freed = cache.forget(model=model)
    assert there(cache, store) == (left, left)
    assert {name for name in (OURS, THEIRS) if known(cache, name) == 60} == left
    assert (freed.memory > 0) == (freed.disk > 0) == (left != {OURS, THEIRS})
    assert cache.check() == store.check() == []
    cache.insert(OURS, IDS, [rows(IDS)])
    assert known(cache, OURS) == 60
    assert cache.check() == []


def test_p8_memory_goes_back_to_the_system(tmp_path):
    cache = filled(DiskStore(tmp_path))
    cache.forget()
    assert mx.get_cache_memory() == 0
    assert cache.stats()["memory"]["bytes"] == cache.stats()["memory"]["waiting"] == 0


class Slow(DiskStore):
    """A slow disk, whose write ends once nobody wants its span any more, or `done` is set."""

    cache = None
    done = False

    def save(self, span):
        while not self.done and self.cache._writer._unwanted is None:
            time.sleep(0.001)
        return super().save(span)


@pytest.mark.parametrize(("model", "left"), [(None, set()), ("ours", {THEIRS})])
def test_p8_what_is_on_its_way_to_the_disk_does_not_come_there(tmp_path, model, left):
    store = Slow(tmp_path)
    cache = store.cache = filled(store)
    cache.insert(OURS, [1, *IDS], [rows([1, *IDS])])
    assert cache.flush(wait=False) == 3
    cache.forget(model=model)
    store.done = True
    cache.flush()
    assert there(cache, store) == (left, left)
    assert cache.stats()["memory"]["waiting"] == 0


def is_blocked(cache):
    return cache._writer._progress is QueueState.BLOCKED


def test_p8_what_waits_for_another_process_is_given_up(tmp_path, monkeypatch):
    """A lock that stays shut keeps the first in the queue there, and no forgetting waits for it."""
    store = DiskStore(tmp_path)
    monkeypatch.setattr(DiskStore, "save", lambda self, span: False)
    monkeypatch.setattr(DiskStore, "pause", property(lambda self: 3600.0))
    cache = filled(store)
    assert cache.flush(wait=False) == 2
    with cache._writer._changed:
        assert cache._writer._changed.wait_for(lambda: is_blocked(cache), 30)
    cache.forget()
    assert not cache._writer.busy
    monkeypatch.undo()
    cache.flush()
    assert there(cache, store) == (set(), set())


@pytest.mark.parametrize(("model", "kept"), [(None, False), ("ours", False), ("theirs", True)])
@pytest.mark.parametrize("rows_end", [Rows.COPY, Rows.RETURN])
def test_p8_what_was_under_way_is_not_kept_at_its_end(tmp_path, model, kept, rows_end):
    store = DiskStore(tmp_path)
    cache = filled(store)
    since = cache.moment()
    lease = cache.fetch(OURS, [*IDS[:60], 0])
    cache.forget(model=model)
    cache.insert_path(OURS, IDS[:60], lease.layers, [PathEnd(60, "user", rows_end)], since=since)
    cache.flush()
    assert [OURS in place for place in there(cache, store)] == [kept, kept]
    assert known(cache, OURS) == (60 if kept else 0)
    # What begins now is anybody's again.
    layers = [rows(IDS)]
    cache.insert_path(OURS, IDS, layers, [PathEnd(90, "user", rows_end)], since=cache.moment())
    assert known(cache, OURS) == 60


def test_p8_what_comes_in_the_middle_of_it_is_not_kept(tmp_path):
    kept = []

    class Busy(DiskStore):
        def clear(self, **which):
            freed = super().clear(**which)
            if cache is not None:
                for namespace in (OURS, THEIRS):
                    kept.append(cache.insert(namespace, IDS, [rows(IDS)]))
                cache.flush()
            return freed

    cache = None
    store = Busy(tmp_path)
    cache = filled(store)
    cache.forget(model="ours")
    assert kept == [0, 90]
    assert there(cache, store) == ({THEIRS}, {THEIRS})


@pytest.fixture
def clock(monkeypatch):
    """`clock[0]` is the time of day, in Unix seconds."""
    now = [1_700_000_000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def test_p8_what_is_old_leaves_memory_and_disk_and_what_is_used_stays(tmp_path, clock):
    store = DiskStore(tmp_path)
    cache = filled(store)
    cache.insert(OURS, [1, *IDS], [rows([1, *IDS])])
    cache.insert(OURS, [2, *IDS], [rows([2, *IDS])])
    cache.pin(OURS, [2, *IDS])
    cache.flush()
    clock[0] += 2 * DAY
    assert known(cache, OURS) == 60  # from memory: the disk hears of it in time
    clock[0] += DAY
    assert cache.forget(days=4) == (0, 0, ())
    freed = cache.forget(days=2)
    assert min(freed.memory, freed.disk) > 0
    assert there(cache, store) == ({OURS}, {OURS})
    assert cache.in_memory(OURS, [2, *IDS]) == 91  # pinned
    assert store.lookup(OURS, array("I", IDS[:60])).end == 60
    for start, cached in (([], 60), ([1], 0), ([2], 91)):
        assert cache.fetch(OURS, [*start, *IDS, 1000]).cached == cached, start
    cache.forget(model="theirs", days=0.001)
    assert known(cache, OURS) == 60
    cache.flush()  # as behind each answer: the disk dates a use when it hears of it
    clock[0] += DAY
    cache.forget(days=0.5)
    assert known(cache, OURS) == 0
    assert cache.fetch(OURS, [2, *IDS, 1000]).cached == 91  # pinned, as on the disk
    assert cache.check() == store.check() == []


def test_a_path_stays_while_something_younger_hangs_on_it(tmp_path, clock):
    cache = filled(DiskStore(tmp_path))
    clock[0] += 2 * DAY
    cache.insert(OURS, IDS, [rows(IDS)])
    cache.forget(days=1)
    assert cache.fetch(OURS, [*IDS, 1000]).cached == 90
    assert known(cache, THEIRS) == 0


def test_ages_are_those_of_a_clock():
    seed = random.randrange(1 << 30)
    print(f"{seed=}")
    rng = random.Random(seed)
    now = [0.0]
    ages = Ages(lambda: now[0])
    used, latest = {}, 0.0
    for tick in range(1, 2000):
        now[0] += rng.choice([0.0, 0.5, 3.0, 60.0, 4000.0, -2.0])
        ages.note(tick)
        latest = max(latest, now[0])  # a clock that was set back makes nothing older
        used[tick] = latest
    for _ in range(200):
        days = rng.uniform(0, now[0] / DAY)
        last = ages.unused_since(days)
        before = now[0] - days * DAY
        assert all(at < before + 5 for tick, at in used.items() if tick <= last)
        assert all(at >= before - 10 for tick, at in used.items() if tick > last)
    for tick in rng.sample(sorted(used), 100):
        assert abs(ages.seconds_since(tick) - max(0.0, now[0] - used[tick])) <= 5


def test_ages_of_a_long_life_are_few():
    now = [0.0]
    ages = Ages(lambda: now[0])
    for tick in range(1, 50_001):
        now[0] += 10.0
        ages.note(tick)
    assert len(ages._times) == len(ages._ticks) <= 4096
    for tick in (45_000, 20_000, 5_000):
        age = (50_000 - tick) * 10.0
        assert ages.unused_since(age / DAY) == pytest.approx(tick, abs=32)


def test_uses_of_what_is_forgotten_are_told_to_nobody(tmp_path):
    cache = filled(DiskStore(tmp_path))
    for namespace in (OURS, THEIRS):
        assert known(cache, namespace) == 60
    cache.forget(model="ours")
    assert [use.namespace for use in cache._writer._uses] == [THEIRS]
    assert cache._writer._uses[0].path == array("I", IDS[:60])
    cache.forget()
    assert cache._writer._uses == []
