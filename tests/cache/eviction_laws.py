"""Laws of a CacheOrder that hold under every policy, for tests of each."""

import random

import pytest

from llm_mlx_promptcache.cache.memory.order import CacheOrder
from llm_mlx_promptcache.cache.memory.policies import Policy
from llm_mlx_promptcache.cache.worth import TIERS


def drained(order):
    """The items in the order of their eviction, until none may leave."""
    gone = []
    while (victim := order.pop()) is not None:
        gone.append(victim.item)
    return gone


def fill(order, items, tier="assistant"):
    """One root entry for each item, each of its own request."""
    entries = {}
    for item in items:
        order.advance()
        entries[item] = order.push(item, tier, 1, 1)
    return entries


def grow(order, seed, steps=300):
    """A random forest of entries, some used, touched, promoted and held."""
    chance, entries = random.Random(seed), []
    for number in range(steps):
        order.advance()
        parent = chance.choice([None, *entries[-20:]])
        tier = chance.choice(order.tiers)
        nbytes, tokens = chance.randint(1, 9) * 100, chance.randint(1, 900)
        entries.append(order.push(number, tier, nbytes, tokens, parent, key=number))
        for change in (order.use, order.touch):
            change(chance.sample(entries, min(2, len(entries))))
        order.promote(chance.choice(entries), chance.choice(order.tiers))
    return entries


class EvictionLaws:
    """Laws that the cache relies on, whatever the policy: subclasses name one."""

    policy: str | type[Policy]

    def order(self, tiers=TIERS):
        policy = self.policy
        return CacheOrder(tiers, policy if isinstance(policy, str) else policy())

    def test_law_3_every_item_is_popped_exactly_once(self):
        order = self.order()
        entries = grow(order, seed=1)
        assert len(order) == len(entries)
        assert order.nbytes == sum(entry.nbytes for entry in entries)
        assert sorted(drained(order)) == [entry.item for entry in entries]
        assert (len(order), order.nbytes, order.pop()) == (0, 0, None)

    def test_law_11_leaves_are_evicted_before_what_they_hang_on(self):
        order = self.order()
        entries = grow(order, seed=2)
        place = {item: at for at, item in enumerate(drained(order))}
        for entry in entries:
            if entry.parent is not None:
                assert place[entry.item] < place[entry.parent.item]

    def test_what_is_held_stays_with_all_it_hangs_on(self):
        order = self.order()
        chance = random.Random(3)
        held = chance.sample(grow(order, seed=3), 20)
        for entry in held:
            order.hold(entry)
        safe = set()
        for entry in held:
            while entry is not None:
                safe.add(entry.item)
                entry = entry.parent
        assert not safe & set(drained(order))
        assert len(order) == len(safe)
        for entry in held:
            order.release(entry)
        assert set(drained(order)) == safe

    def test_held_twice_is_released_twice(self):
        order = self.order()
        entry = fill(order, ["a"])["a"]
        order.hold(entry)
        order.hold(entry)
        order.release(entry)
        assert order.pop() is None
        order.release(entry)
        assert order.pop() is entry
        with pytest.raises(ValueError, match="release without hold"):
            order.release(entry)

    def test_the_same_history_gives_the_same_order(self):
        first, second = self.order(), self.order()
        grow(first, seed=4)
        grow(second, seed=4)
        assert drained(first) == drained(second)

    def test_an_inner_entry_is_evicted_once_its_last_child_is_gone(self):
        order = self.order()
        root = order.push("root", "system", 1, 1)
        leaf = order.push("leaf", "user", 1, 1, root)
        with pytest.raises(ValueError, match="1 entries hang on this one"):
            order.remove(root)
        order.remove(leaf)
        assert order.pop() is root

    def test_removed_entries_are_not_popped_and_stay_out(self):
        order = self.order()
        entries = fill(order, "abc")
        order.remove(entries["b"])
        order.touch([entries["b"]])
        assert entries["b"] not in order
        assert drained(order) == ["a", "c"]
        for change in (order.remove, lambda entry: order.resize(entry, 9, 9)):
            with pytest.raises(ValueError, match="not in this order"):
                change(entries["b"])
        with pytest.raises(ValueError, match="not in this order"):
            order.push("child", "user", 1, 1, entries["b"])
        assert (len(order), order.nbytes) == (0, 0)

    @pytest.mark.parametrize("length", range(1, 6))
    def test_tiers_are_the_callers_own(self, length):
        tiers = ["scratch", "notes", "files", "tools", "rules"][:length]
        order = self.order(tiers)
        assert [order.rank(tier) for tier in tiers] == list(range(length))
        for tier in tiers * 2:
            order.push(tier, tier, 1, 1)
        assert sorted(drained(order)) == sorted(tiers * 2)

    def test_an_unknown_tier_is_named_with_the_known_ones(self):
        order = self.order()
        entry = order.push("a", "user", 1, 1)
        known = "tier is 'tool'; it is one of assistant, user, system"
        for change in (lambda: order.push("b", "tool", 1, 1), lambda: order.promote(entry, "tool")):
            with pytest.raises(ValueError, match=known):
                change()
        assert (len(order), order.nbytes) == (1, 1)

    def test_a_split_keeps_both_parts_in_order(self):
        order = self.order()
        lower = order.push("lower", "user", 100, 10)
        leaf = order.push("leaf", "assistant", 1, 1, lower)
        upper = order.split(lower, "upper", 60, 6)
        order.resize(lower, 40, 4)
        assert (len(order), order.nbytes) == (3, 101)
        assert (lower.parent, upper.children, leaf.parent) == (upper, 1, lower)
        assert drained(order) == ["leaf", "lower", "upper"]

    def test_clear_forgets_everything(self):
        order = self.order()
        grow(order, seed=5)
        order.pop()
        order.clear()
        assert (len(order), order.nbytes, len(order.ghosts), order.pop()) == (0, 0, 0, None)

    def test_queued_tickets_stay_in_proportion_to_entries(self):
        order = self.order()
        entries = fill(order, range(50))
        for _ in range(1000):
            order.advance()
            order.touch(entries.values())
        assert order._queued == sum(map(len, order._heaps.values())) <= 2 * len(order) + 64


class RecencyLaws(EvictionLaws):
    """Laws of policies under which use makes safer."""

    def test_what_was_used_last_is_evicted_last(self):
        order = self.order()
        entries = fill(order, "abc")
        order.advance()
        order.use([entries["a"]])
        assert drained(order) == ["b", "c", "a"]
