"""CacheOrder against a model that compares all entries with each other, slowly."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mlx_promptcache.cache.memory.order import CacheOrder
from llm_mlx_promptcache.cache.memory.policies import PastUse, Recency
from llm_mlx_promptcache.cache.worth import TIERS, density, worth


class Model:
    """The default policy, slowly: all entries that may be evicted are compared with each other."""

    def __init__(self, order):
        self.order, self.entries = order, []

    def victim(self):
        def value(entry):
            age, policy = self.order.now - entry.last_used, self.order.policy
            leading = getattr(policy, "leading", None) or policy
            if isinstance(leading, Recency):
                weight = leading.weight(entry.tier, returned=entry.returned)
                return worth(age, weight, density(entry.tokens, entry.nbytes)), entry.serial
            return -age, entry.serial

        parents = {entry.parent.serial for entry in self.entries if entry.parent}
        free = [e for e in self.entries if e.serial not in parents and not e.holds]
        return min(free, key=value, default=None)


steps = st.lists(
    st.tuples(
        st.sampled_from(["push", "push", "use", "touch", "hold", "release", "split"])
        | st.sampled_from(["promote", "resize", "remove", "pop", "advance"]),
        st.integers(0, 99),
        st.integers(1, 5),
    ),
    max_size=60,
)


@pytest.mark.parametrize("policy", ["default", "lru", PastUse, Recency])
@settings(deadline=None)
@given(steps)
def test_law_11_the_order_agrees_with_comparing_all(policy, steps):
    order = CacheOrder(policy=policy if isinstance(policy, str) else policy())
    model = Model(order)
    for name, pick, size in steps:
        step(order, model, name, pick, size)
        assert order.nbytes == sum(entry.nbytes for entry in model.entries)
        assert len(order) == len(model.entries)
        assert order._counts == [sum(e.tier == t for e in model.entries) for t in range(3)]
    while (expected := model.victim()) is not None:
        assert order.pop() is expected
        model.entries.remove(expected)
    assert order.pop() is None


def step(order, model, name, pick, size):
    entries = model.entries
    one = entries[pick % len(entries)] if entries else None
    if name == "advance":
        order.advance()
    elif name == "push":
        parent = one if pick % 3 else None
        tier = TIERS[size % 3]
        entries.append(order.push(None, tier, size * 100, pick, parent, key=pick % 7))
    elif name == "pop":
        expected = model.victim()
        assert order.pop() is expected
        if expected is not None:
            entries.remove(expected)
    elif one is None:
        return
    elif name in ("use", "touch"):
        getattr(order, name)([one])
    elif name == "split":
        entries.append(order.split(one, None, size, size))
    elif name == "promote":
        order.promote(one, TIERS[size % 3])
    elif name == "resize":
        order.resize(one, size * 50, pick)
    elif name == "remove" and not one.children:
        order.remove(one)
        entries.remove(one)
    elif name == "hold" or (name == "release" and one.holds):
        getattr(order, name)(one)
