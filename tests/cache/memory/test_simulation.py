"""A trace played through an order, beside a cache that is written as plainly as possible."""

import random

import pytest

from llm_mlx_promptcache.cache.memory.order import CacheOrder
from llm_mlx_promptcache.cache.memory.policies import Policy
from llm_mlx_promptcache.cache.memory.simulation import OwnPath, TracedPath, hit_ratio, most_hits


def some_trace(chance):
    """Prompts over few texts, which grow, part and come back; an id stands for its whole path."""
    ids, paths = {}, [[]]
    trace = []
    for _ in range(chance.randrange(2, 40)):
        path = chance.choice(paths)
        path = path[: chance.randrange(len(path) + 1)] if chance.random() < 0.4 else path
        path = [*path, *(chance.randrange(3) for _ in range(chance.randrange(1, 5)))]
        paths.append(path)
        blocks = [ids.setdefault(tuple(path[: at + 1]), len(ids)) for at in range(len(path))]
        trace.append(TracedPath(blocks, ["user"] * len(blocks)))
    return trace


def plain_lru(trace, capacity, own):
    """Hits of a cache that evicts the least recently used leaf, searched among all."""
    used, parents, hits = {}, {}, 0

    def evict(spared):
        while len(used) > capacity:
            leaves = [b for b in used if b not in {parents[c] for c in used} and b != spared]
            if not leaves:
                return
            del used[min(leaves, key=lambda b: used[b])]

    for at, (blocks, _) in enumerate(trace):
        there = True
        for place, block in enumerate(blocks):
            there = there and block in used
            hits += there
            parents[block] = blocks[place - 1] if place else None
            # What is stored first goes first of what was used at once.
            used[block] = (at, used[block][1] if block in used else len(parents) + at * 1000)
        if own is OwnPath.HELD:
            evict(blocks[-1])
        evict(None)
    return hits / sum(len(blocks) for blocks, _ in trace)


@pytest.mark.parametrize("own", OwnPath)
def test_lru_finds_what_a_plain_one_finds(own):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(60):
        trace, capacity = some_trace(chance), chance.randrange(1, 25)
        found = hit_ratio(trace, capacity, CacheOrder(policy="lru"), own)
        assert found == pytest.approx(plain_lru(trace, capacity, own)), (trace, capacity)


class NewestFirst(Policy):
    """Evicts the most recently used first."""

    def rank(self, entry):
        return -entry.last_used


@pytest.mark.parametrize(("own", "hits"), [(OwnPath.HELD, 1), (OwnPath.LOOSE, 0)])
def test_a_prompts_own_path_stays_while_it_runs(own, hits):
    trace = [TracedPath([block], ["user"]) for block in (1, 2, 2)]
    assert hit_ratio(trace, 1, CacheOrder(policy=NewestFirst()), own) == hits / 3


def test_without_a_limit_every_order_finds_all_that_can_be_found():
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(20):
        trace = some_trace(chance)
        for policy in ("default", "lru", "mlx-lm"):
            assert hit_ratio(trace, 10_000, CacheOrder(policy=policy)) == most_hits(trace)


def test_what_comes_back_stays_where_lru_loses_it():
    """A document that is asked again and again among others that are read once."""
    document = list(range(10))
    trace, new = [], 100
    for _ in range(40):
        trace += [TracedPath(document, ["user"] * 10)] * 2
        for _ in range(3):
            trace.append(TracedPath(list(range(new, new + 10)), ["user"] * 10))
            new += 10
    ours, lru = (hit_ratio(trace, 30, CacheOrder(policy=name)) for name in ("default", "lru"))
    assert lru == pytest.approx(40 * 10 / (40 * 50), abs=0.01)  # the second of each two
    assert ours > 1.8 * lru  # which is noticed after a few of them


def test_an_empty_trace_has_no_hits():
    assert hit_ratio([], 5, CacheOrder()) == most_hits([]) == 0
