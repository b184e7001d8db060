"""Random inserts, fetches, pins and evictions against a plain dictionary of paths (laws 1 to 4).

The layers are mlx-lm's own `KVCache`, filled with rows that spell their tokens, so that every row
that comes back can be read: it must be the prompt's.
"""

import itertools

import hypothesis.strategies as st
import mlx.core as mx
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)
from mlx_lm.models.cache import KVCache

from llm_mlx_promptcache.cache.insertion import Rows
from llm_mlx_promptcache.cache.prompt_cache import PromptCache

ROW = 2 * 2 * 1 * 4 * 4  # layers x keys and values x heads x width x bytes
BUDGET = ROW * 40
INSERTED = st.sampled_from([Rows.COPY, Rows.RETURN])
# What is new first, then all of it, or all at once.
STEPS = [
    [Rows.COPY],
    [Rows.RETURN],
    [Rows.KEEP_OUT],
    [Rows.KEEP_OUT, Rows.RETURN],
]
TIERS = ("assistant", "user", "system")

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=12)
namespaces = st.sampled_from(["a", "b"])


def spell(layers, ids):
    """Run a model whose rows are the tokens that they stand for."""
    rows = mx.broadcast_to(mx.array(ids, mx.float32)[None, None, :, None], (1, 1, len(ids), 4))
    for number, layer in enumerate(layers):
        layer.update_and_fetch(rows + number, -rows)
    mx.eval([layer.state for layer in layers])
    return layers


def read(layers):
    """The tokens that the rows of the layers spell; all layers must agree."""
    spelled = set()
    for number, layer in enumerate(layers):
        keys = layer.keys[0, 0, : layer.offset, 0] - number
        spelled.add(tuple(int(k) for k in keys.tolist()))
        values = layer.values[0, 0, : layer.offset, 0]
        assert bool(mx.array_equal(keys, -values))
    (path,) = spelled
    return list(path)


class CacheMachine(RuleBasedStateMachine):
    """A set of prefixes is stored; every fetch must be one of them."""

    leases = Bundle("leases")

    def __init__(self):
        super().__init__()
        self.cache = PromptCache(BUDGET)
        self.stored = {"a": set(), "b": set()}
        self.pinned = set()

    @rule(namespace=namespaces, ids=tokens, tier=st.sampled_from(TIERS), rows=INSERTED)
    def insert(self, namespace, ids, tier, rows):
        layers = spell([KVCache(), KVCache()], ids)
        kept = self.cache.insert(namespace, ids, layers, tier, rows=rows)
        assert kept <= len(ids)
        assert (layers == []) == (rows is Rows.RETURN)
        self.stored[namespace].add(tuple(ids))

    @rule(target=leases, namespace=namespaces, ids=tokens, headroom=st.sampled_from([0, 3]))
    def fetch(self, namespace, ids, headroom, rows=Rows.COPY):
        lease = self.cache.fetch(namespace, ids, headroom, rows=rows)
        assert lease.cached < len(ids)
        if lease.layers is None:
            return multiple()
        assert read(lease.layers) == ids[: lease.cached]
        prefix = tuple(ids[: lease.cached])
        assert any(path[: lease.cached] == prefix for path in self.stored[namespace])
        return namespace, ids, lease

    @rule(target=leases, namespace=namespaces, ids=tokens)
    def be_given(self, namespace, ids):
        return self.fetch(namespace, ids, 0, rows=Rows.GIVE)

    @rule(lease=consumes(leases), more=tokens, steps=st.sampled_from(STEPS))
    def go_on_and_insert(self, lease, more, steps):
        namespace, ids, (layers, cached, *_) = lease
        path = [*ids[:cached], *more]
        layers = spell(layers, more)
        for rows in steps:
            self.cache.insert(namespace, path, layers, rows=rows)
        self.stored[namespace].add(tuple(path))

    @rule(lease=consumes(leases))
    def let_go(self, lease):
        del lease

    @rule(namespace=namespaces, ids=tokens)
    def pin(self, namespace, ids):
        if len(self.pinned) < 2:
            if self.cache.fetch(namespace, [*ids, 9]).cached < len(ids):
                with pytest.raises(ValueError, match="in memory"):
                    self.cache.pin(namespace, ids)
            else:
                self.cache.pin(namespace, ids)
                self.pinned.add((namespace, tuple(ids)))

    @rule(data=st.data())
    def unpin(self, data):
        if self.pinned:
            chosen = data.draw(st.sampled_from(sorted(self.pinned)))
            self.cache.unpin(*chosen)
            self.pinned.remove(chosen)

    @rule(rows=st.integers(0, 40))
    def trim(self, rows):
        self.cache.trim_to(memory_bytes=rows * ROW)

    @invariant()
    def nothing_is_lost_or_counted_twice(self):
        assert self.cache.check() == []
        for namespace, ids in self.pinned:
            assert self.cache.fetch(namespace, [*ids, 9]).cached >= len(ids)

    @invariant()
    def distinct_prefixes_are_held_once(self):
        prefixes = {
            (namespace, path[:end])
            for namespace, paths in self.stored.items()
            for path in paths
            for end in range(1, len(path) + 1)
        }
        assert self.cache.stats()["memory"]["bytes"] <= ROW * len(prefixes)


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@pytest.mark.soak
def test_the_same_for_much_longer(soak_share):
    from hypothesis.stateful import run_state_machine_as_test

    longer = settings(max_examples=round(1500 * soak_share), stateful_step_count=60, deadline=None)
    run_state_machine_as_test(CacheMachine, settings=longer)


def test_the_rows_do_spell_the_tokens():
    layers = spell([KVCache(), KVCache()], [2, 0, 1])
    assert read(layers) == [2, 0, 1]
    assert list(itertools.islice(read(layers), 1)) == [2]
