"""CacheOrder apart from its policies: its tiers, what it costs, what it imports."""

import subprocess
import sys

import pytest
from eviction_laws import drained

from llm_mlx_promptcache.cache.memory.order import CacheOrder
from llm_mlx_promptcache.cache.memory.policies import Policy


@pytest.mark.parametrize("tiers", [[], ["a", "a"], "user"])
def test_tiers_that_are_no_list_of_different_names(tiers):
    with pytest.raises(ValueError, match="tiers is"):
        CacheOrder(tiers)


def test_pops_stay_cheap_as_entries_grow(monkeypatch):
    """Ten times the entries: at most a few times the work for each, counted and not timed.

    That of both shadows is counted too: whatever compares, does so by rank.
    """
    work, rank = [], Policy.rank
    for size in (1_000, 10_000):
        order = CacheOrder()
        comparisons = 0

        class Counted(float):
            def __lt__(self, other):
                nonlocal comparisons
                comparisons += 1
                return float.__lt__(self, other)

        monkeypatch.setattr(
            Policy, "rank", lambda self, entry, kind=Counted: kind(rank(self, entry))
        )
        for number in range(size):
            order.advance()
            order.push(number, "user", 1, 1, key=number)
        drained(order)
        work.append(comparisons / size)
    assert work[1] < 2 * work[0]


def test_the_order_imports_no_mlx():
    code = (
        "import sys, llm_mlx_promptcache.cache.memory.order;"
        "sys.exit(any(m.split('.')[0] in ('mlx', 'numpy') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
