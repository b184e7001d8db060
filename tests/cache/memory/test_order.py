"""CacheOrder: laws that hold under every policy, and each policy's own rule."""

import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_mlx_promptcache.cache.memory.order import POLICIES, CacheOrder
from llm_mlx_promptcache.cache.memory.policies import PastUse, Policy, Recency
from llm_mlx_promptcache.cache.worth import TIERS, density, history_weight, recency_weight, worth


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

    def test_law_11_leaves_go_before_what_they_hang_on(self):
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

    def test_an_inner_entry_goes_once_its_last_child_is_gone(self):
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

    def test_what_was_used_last_goes_last(self):
        order = self.order()
        entries = fill(order, "abc")
        order.advance()
        order.use([entries["a"]])
        assert drained(order) == ["b", "c", "a"]


class TestLru(RecencyLaws):
    policy = "lru"

    def test_tiers_do_not_count(self):
        order = self.order()
        for tier in ("system", "assistant", "user"):
            order.advance()
            order.push(tier, tier, 1, 1)
        assert drained(order) == ["system", "assistant", "user"]


class TestMlxLm(EvictionLaws):
    policy = "mlx-lm"

    def test_a_fetch_counts_nothing_an_insert_does(self):
        order = self.order()
        entries = fill(order, "abc")
        order.advance()
        order.use([entries["a"]])
        order.touch([entries["b"]])
        assert drained(order) == ["a", "c", "b"]

    @given(st.lists(st.sampled_from(TIERS), max_size=30))
    def test_it_agrees_with_mlx_lms_own(self, tiers):
        cache = pytest.importorskip("mlx_lm.models.cache")
        order, theirs = self.order(), cache.LRUPromptCache.CacheOrder()
        for number, tier in enumerate(tiers):
            order.advance()
            order.push(number, tier, 1, 1)
            theirs.push("model", number, tier)
        # Theirs fails on an empty last tier; ours takes from the tier that is left.
        expected = []
        for _ in tiers:
            try:
                expected.append(theirs.pop()[1])
            except IndexError:
                break
        assert drained(order)[: len(expected)] == expected


class TestDefault(RecencyLaws):
    """Laws under whichever policy leads; how one comes to lead: test_guarded.py."""

    policy = "default"

    @pytest.mark.parametrize("history", [False, True])
    def test_system_prompts_outlive_what_is_newer(self, history):
        order = self.order()
        order.policy._challengers[0].leads = history
        for tier in ("system", "user", "assistant"):
            order.advance()
            order.push(tier, tier, 1, 1)
        assert isinstance(order.policy.leading, PastUse) == history
        assert drained(order)[-1] == "system"

    def test_a_user_message_outlives_the_answer_to_it(self):
        order = self.order()
        asked = order.push("asked", "user", 1, 1)
        order.push("answer", "assistant", 1, 1, asked)
        order.advance()
        order.push("other", "user", 1, 1)
        assert drained(order) == ["answer", "asked", "other"]


class TestRecency(RecencyLaws):
    policy = Recency

    def test_below_the_system_prompt_tiers_do_not_count(self):
        order = self.order()
        for tier in ("system", "user", "assistant"):
            order.advance()
            order.push(tier, tier, 1, 1)
        assert drained(order) == ["user", "assistant", "system"]

    def test_a_system_prompt_stays_sixteen_times_as_long_and_no_longer(self):
        for idle, first in ((14, "answer"), (16, "rules")):
            order = self.order()
            order.push("rules", "system", 1, 1)
            order.now = idle
            order.push("answer", "assistant", 1, 1)
            assert drained(order)[0] == first

    def test_what_came_back_counts_no_more_than_its_recency(self):
        order = self.order()
        order.use([order.push("twice", "user", 1, 1)])
        order.advance()
        order.push("once", "user", 1, 1)
        assert drained(order) == ["twice", "once"]

    def test_cheap_to_rebuild_goes_before_dear(self):
        order = self.order()
        order.push("short checkpoint", "user", 1_000_000, 10)
        order.push("long checkpoint", "user", 1_000_000, 4000)
        order.push("rows", "user", 10_000, 100)
        assert drained(order) == ["short checkpoint", "long checkpoint", "rows"]


class TestHistory(RecencyLaws):
    policy = PastUse

    def test_a_tier_protects(self):
        order = self.order()
        for tier in ("system", "user", "assistant"):
            order.advance()
            order.push(tier, tier, 1, 1)
        assert drained(order) == ["assistant", "user", "system"]

    def test_a_tier_is_a_prior_not_a_wall(self):
        order = self.order()
        order.push("old rules", "system", 1, 1)
        for _ in range(1000):
            order.advance()
        order.push("new answer", "assistant", 1, 1)
        assert drained(order) == ["old rules", "new answer"]

    def test_what_came_back_outlives_what_did_not(self):
        order = self.order()
        entries = fill(order, ["twice", "once", "new"])
        order.use([entries["twice"]])
        order.advance()
        order.touch([entries["once"], entries["new"]])
        assert drained(order)[-1] == "twice"

    def test_a_conversation_that_goes_on_is_expected_back(self):
        order = self.order()
        turn = order.push("turn", "user", 1, 1)
        order.use([turn])
        assert order.push("next turn", "user", 1, 1, turn).returned
        assert not order.push("other question", "user", 1, 1, turn).returned

    def test_an_answer_rendered_anew_is_the_same_conversation(self):
        order = self.order()
        turn = order.push("turn", "user", 1, 1)
        order.push("answer as generated", "assistant", 1, 1, turn)
        order.use([turn])
        assert order.push("answer without thinking, next turn", "user", 1, 1, turn).returned
        assert not order.push("third answer", "assistant", 1, 1, turn).returned

    def test_one_tier_for_everything_still_tells_questions_from_conversations(self):
        order = self.order()
        document = order.push("document", "assistant", 1, 1)
        order.push("question", "assistant", 1, 1, document)
        order.use([document])
        assert not order.push("other question", "assistant", 1, 1, document).returned

    def test_of_a_split_span_the_first_part_came_back(self):
        order = self.order()
        question = order.push("question", "user", 10, 10)
        document = order.split(question, "document", 9, 9)
        assert document.returned
        assert not question.returned
        assert not order.push("other question", "user", 1, 1, document).returned

    def test_what_returns_after_eviction_is_remembered(self):
        order = self.order()
        root = order.push("document", "user", 1, 1, key="document")
        order.push("question", "user", 1, 1, root, key="question")
        drained(order)
        assert len(order.ghosts) == 2
        again = order.push("document", "user", 1, 1, key="document")
        assert (again.returned, again.extended, again.uses) == (True, True, 1)
        assert len(order.ghosts) == 1
        assert not order.push("unknown", "user", 1, 1, key="unknown").returned

    def test_memory_of_the_evicted_is_bounded(self):
        order = self.order()
        for number in range(5000):
            order.push(number, "user", 1, 1, key=number)
            if number >= 10:
                order.pop()
        assert len(order.ghosts) == 1024
        assert sum(order.ghosts._held.values()) == 1024

    def test_cheap_to_rebuild_goes_before_dear(self):
        order = self.order()
        order.push("short checkpoint", "user", 1_000_000, 10)
        order.push("long checkpoint", "user", 1_000_000, 4000)
        order.push("rows", "user", 10_000, 100)
        assert drained(order) == ["short checkpoint", "long checkpoint", "rows"]

    @pytest.mark.parametrize("returned", [False, True])
    def test_the_bias_follows_what_comes_back_too_late(self, returned):
        order = self.order()
        before = order.policy.bias
        for number in range(50):
            order.advance()
            entry = order.push(number, "user", 1, 1, key=number)
            if returned:
                order.use([entry])
        for _ in range(10):
            order.pop()
        for number in range(10):
            order.push(number, "user", 1, 1, key=number)
        assert (order.policy.bias > before) == returned
        assert 1.0 <= order.policy.bias <= 2.0**PastUse.MOST


def test_worth_is_ordered_by_each_of_its_arguments():
    plain = worth(5, 4.0, 0)
    assert worth(6, 4.0, 0) < plain < worth(5, 16.0, 0)
    assert worth(5, 4.0, -1) < plain < worth(4, 4.0, 0)
    assert history_weight(0, 1.0) < history_weight(1, 1.0) < history_weight(1, 2.0)
    assert recency_weight(0) == recency_weight(1) == 1.0
    assert recency_weight(2) == history_weight(2, 1.0) == 16.0
    assert density(4096, 4096) == 0 > density(1, 4096) == -12
    assert density(0, 0) == 0


@pytest.mark.parametrize("tiers", [[], ["a", "a"], "user"])
def test_tiers_that_are_no_list_of_different_names(tiers):
    with pytest.raises(ValueError, match="tiers is"):
        CacheOrder(tiers)


def test_an_unknown_policy_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="policy is 'fifo'; it is one of default, lru, mlx-lm"):
        CacheOrder(policy="fifo")


def test_a_policy_of_ones_own():
    class Largest(Policy):
        def rank(self, entry):
            return -entry.nbytes

    order = CacheOrder(policy=Largest())
    for size in (2, 3, 1):
        order.push(size, "user", size, 1)
    assert drained(order) == [3, 2, 1]


def test_every_policy_has_its_laws():
    covered = {cls.policy for cls in (TestLru, TestMlxLm, TestDefault)}
    assert covered == set(POLICIES)


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
