"""Policies: the laws of eviction under each, and each one's own rule."""

import pytest
from eviction_laws import EvictionLaws, RecencyLaws, drained, fill
from hypothesis import given
from hypothesis import strategies as st

from llm_mlx_promptcache.cache.memory.order import POLICIES, CacheOrder
from llm_mlx_promptcache.cache.memory.policies import PastUse, Policy, Recency
from llm_mlx_promptcache.cache.worth import TIERS, density, history_weight, recency_weight, worth


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


class RebuildLaws(RecencyLaws):
    """Those of policies that weigh the work of computing a span again."""

    def test_cheap_to_rebuild_is_evicted_before_dear(self):
        order = self.order()
        order.push("short checkpoint", "user", 1_000_000, 10)
        order.push("long checkpoint", "user", 1_000_000, 4000)
        order.push("rows", "user", 10_000, 100)
        assert drained(order) == ["short checkpoint", "long checkpoint", "rows"]


class TestRecency(RebuildLaws):
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


class TestHistory(RebuildLaws):
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
