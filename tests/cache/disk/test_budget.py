"""Evictions from a shared folder: small transactions, linear in the rows removed, worst first."""

import random
from array import array

import pytest

from llm_mlx_promptcache.cache.disk.budget import ROWS, Below, Chosen, Excess
from llm_mlx_promptcache.cache.disk.index import Index
from llm_mlx_promptcache.cache.disk.index_rows import SpanRow
from llm_mlx_promptcache.cache.worth import density, recency_weight, worth

SIZE = 1000


def stem_of(number):
    return f"{number:032x}"


@pytest.fixture
def index(tmp_path):
    made = Index(tmp_path / "index.sqlite", new=True)
    yield made
    assert list(made.check()) == []
    made.close()


def add(index, number, parent=None, start=0, namespace="m", size=SIZE, tier=0, used_at=0):
    above = "" if parent is None else stem_of(parent)
    ids = array("I", [number, 1, 2])
    row = SpanRow(stem_of(number), namespace, above, start, ids, True, tier, size, used_at)
    assert index.add(row, "[]", "name", namespace)


def chain(index, length, first=0, **more):
    """Spans that hang on each other, one below the other."""
    with index.transaction():
        for number in range(length):
            parent = first + number - 1 if number else None
            add(index, first + number, parent, 3 * number, **more)


def flat(index, count, first=0, **more):
    with index.transaction():
        for number in range(first, first + count):
            add(index, number, **more)


def removed(index, removal):
    """All that a removal takes, a list for each of its transactions."""
    steps = []
    while True:
        with index.transaction():
            found = removal.step(index)
        steps.append(found.file_ids)
        assert found.file_ids or found.done
        if found.done:
            return steps


def work_of(index, removal):
    """Thousands of instructions of SQLite's machine for each row that was removed."""
    taken = []
    index.db.set_progress_handler(lambda: taken.append(None), 1000)
    try:
        rows = sum(map(len, removed(index, removal)))
    finally:
        index.db.set_progress_handler(None, 0)
    return len(taken) / rows


def test_p4_an_eviction_is_many_small_transactions(index):
    flat(index, 1000)
    steps = removed(index, Excess(500 * SIZE))
    assert sum(map(len, steps)) == 500
    assert max(map(len, steps)) == ROWS
    assert index.totals().bytes == 500 * SIZE


def test_p4_an_eviction_costs_what_it_removes_and_not_what_is_stored(index):
    flat(index, 400)
    few = work_of(index, Excess(index.totals().bytes - 200 * SIZE))
    flat(index, 4000, 1000)
    many = work_of(index, Excess(index.totals().bytes - 200 * SIZE))
    assert many < 1.5 * few


@pytest.mark.parametrize("make", [lambda: Chosen(["m"], None), lambda: Below(stem_of(0))])
def test_p4_a_deep_chain_is_evicted_in_time_linear_in_its_depth(index, make):
    chain(index, 200)
    shallow = work_of(index, make())
    chain(index, 2000)
    steps = []
    assert work_of(index, make()) < 1.5 * shallow
    assert index.totals().spans == 0
    chain(index, 2000)
    steps = removed(index, make())
    assert len(steps) <= 2000 // ROWS + 1
    assert [s for step in steps for s in step] == [stem_of(n) for n in reversed(range(2000))]


def test_p4_a_deep_chain_is_aged_in_small_transactions_from_its_end(index):
    chain(index, 2000, used_at=10)
    chain(index, 5, 5000, used_at=30)
    steps = removed(index, Chosen(["m"], 20))
    assert max(map(len, steps)) <= ROWS
    assert sum(map(len, steps)) == 2000
    assert index.totals().spans == 5


def test_what_is_younger_or_pinned_keeps_what_it_hangs_on(index):
    for first, young in ((0, False), (10, True), (20, False)):
        chain(index, 3, first, used_at=10)
        with index.transaction():
            index.touch([stem_of(first + 2)] if young else [], 30)
    with index.transaction():
        index.pin(stem_of(22), pinned=True)
    gone = [s for step in removed(index, Chosen(["m"], 20)) for s in step]
    assert gone == [stem_of(n) for n in (2, 1, 0)]


def least_worthy(index, pinned=0):
    """The leaf to be evicted next, found by looking at every row."""
    tick = index.totals().tick
    query = """SELECT tier, hits > 0, count, bytes, last_use, file_id FROM spans
        WHERE children = 0 AND pinned = ?"""
    leaves = index.db.execute(query, (pinned,)).fetchall()

    def value(row):
        tier, returned, count, size, last_use, file_id = row
        density_bucket = density(count, size)
        bucket = (tier * 2 + returned) * 65_536 + density_bucket
        return worth(tick - last_use, recency_weight(tier), density_bucket), bucket, file_id

    return min(leaves, key=value)[-1] if leaves else least_worthy(index, 1)


def test_law_11_a_dead_conversation_is_evicted_before_the_last_turn_of_a_living_one(index):
    """The uses of a span say how long its conversation was, not that it goes on."""
    with index.transaction():
        add(index, 1, tier=1)
        for _ in range(5):
            index.touch([stem_of(1)], 0)
        add(index, 2, tier=0)
        index.touch([stem_of(2)], 0)
    with index.transaction():
        assert Excess(SIZE).step(index).file_ids == [stem_of(1)]


@pytest.mark.parametrize("tier", [0, 1])
def test_law_11_a_system_prompt_stays_sixteen_times_as_long(index, tier):
    with index.transaction():
        add(index, 1, tier=2)
        add(index, 2, tier=tier)
        for number, turn in ((1, 0), (2, 14)):
            index.db.execute(
                "UPDATE spans SET last_use = ? WHERE file_id = ?", (turn, stem_of(number))
            )
        index.db.execute("UPDATE totals SET tick = 14")
    with index.transaction():
        assert Excess(SIZE).step(index).file_ids == [stem_of(2)]
    with index.transaction():
        add(index, 3, tier=tier)
        index.db.execute("UPDATE spans SET last_use = 17 WHERE file_id = ?", (stem_of(3),))
        index.db.execute("UPDATE totals SET tick = 17")
        assert Excess(SIZE).step(index).file_ids == [stem_of(1)]


@pytest.mark.parametrize("seed", range(3))
def test_law_11_each_victim_is_the_least_worthy_leaf_of_all(index, seed):
    print("seed", seed)
    rng = random.Random(seed)
    with index.transaction():
        for number in range(150):
            parent = rng.randrange(number) if number and rng.random() < 0.7 else None
            start = 3 if parent is not None else 0
            add(index, number, parent, start, size=2 ** rng.randrange(6, 14), tier=rng.randrange(3))
        for _ in range(100):
            index.touch([stem_of(rng.randrange(150))], 0)
        for number in rng.sample(range(150), 10):
            index.pin(stem_of(number), pinned=True)
    while index.totals().spans:
        expected = least_worthy(index)
        with index.transaction():
            # One at a time, and the others after it in the same order.
            found = Excess(index.totals().bytes - 1).step(index)
        assert found.file_ids == [expected]


def test_law_11_victims_of_one_transaction_are_those_of_many(index, tmp_path):
    """A parent that became a leaf has its turn among the others at once."""
    rng = random.Random(4)
    plan = [
        (rng.randrange(n) if n and rng.random() < 0.8 else None, rng.randrange(3))
        for n in range(ROWS)
    ]
    orders = []
    for sizes in (ROWS, 1):
        with index.transaction():
            for number, (parent, tier) in enumerate(plan):
                add(index, number, parent, 0 if parent is None else 3, tier=tier)
        order = []
        while index.totals().spans:
            with index.transaction():
                order += Excess(index.totals().bytes - sizes * SIZE).step(index).file_ids
        orders.append(order)
    assert orders[0] == orders[1]


def test_models_that_nobody_opens_any_more_are_evicted_first(index):
    with index.transaction():
        index.namespaces.opened("old", "name")
        index.namespaces.opened("new", "name")
    flat(index, 10, 0, namespace="old", tier=2)
    flat(index, 10, 100, namespace="new")
    with index.transaction():
        index.touch([stem_of(n) for n in range(10)], 0)
        index.pin(stem_of(3), pinned=True)
    assert index.namespaces.superseded() == ["old"]
    gone = [s for step in removed(index, Excess(11 * SIZE)) for s in step]
    assert gone == [stem_of(n) for n in range(10) if n != 3]


def test_two_versions_that_take_turns_are_both_kept(index):
    flat(index, 1, 0, namespace="one")
    flat(index, 1, 1, namespace="two")
    expected = [[], ["one"], ["two"], [], [], []]
    for identity, gone in zip(["one", "two"] * 3, expected, strict=True):
        with index.transaction():
            index.namespaces.opened(identity, "name")
        assert index.namespaces.superseded() == gone
    for _ in range(101):
        with index.transaction():
            index.namespaces.opened("two", "name")
    assert index.namespaces.superseded() == ["one"]


def test_a_model_under_two_names_is_gone_only_where_both_say_so(index):
    flat(index, 1, 0, namespace="one")
    with index.transaction():
        for identity, label in (("one", "a"), ("one", "b"), ("two", "a")):
            index.namespaces.opened(identity, label)
    assert index.namespaces.superseded() == []
    with index.transaction():
        index.namespaces.opened("two", "b")
    assert index.namespaces.superseded() == ["one"]
