"""Law 16: the memory that is counted is the memory that MLX holds, at once and for as long.

Nothing here may wait for Python's collector of cycles, so it is off.
"""

import gc
import random
import threading
import weakref
from collections import Counter
from pathlib import Path

import mlx.core as mx
import played_layers
import pytest
from played_layers import FAMILIES, layers_of, same

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.insertion import Insertion, Rows
from llm_mlx_promptcache.cache.layers.layout import layout_of
from llm_mlx_promptcache.cache.memory.leaf_order import LeafOrder
from llm_mlx_promptcache.cache.memory.limits import Limits
from llm_mlx_promptcache.cache.memory.order import CacheOrder
from llm_mlx_promptcache.cache.memory.span_tree import SpanTree
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.cache.trie import PromptTrie, as_tokens

HEADS, WIDTH = 8, 128
ROW = 2 * HEADS * WIDTH * 2  # keys and values of one layer and token, float16
BUDGET = 50_000_000


@pytest.fixture(autouse=True, scope="module")
def no_rubbish():
    """Keep other tests' garbage out of these tests, and unscanned before each of them."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_collector(no_rubbish):
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def exact():
    """MLX without its pool of freed buffers, which may return larger ones than asked for."""
    before = mx.set_cache_limit(0)
    mx.clear_cache()
    yield
    mx.set_cache_limit(before)


def words(seed, count):
    return random.Random(seed).choices(range(1000), k=count)


def play(layers, tokens):
    return played_layers.play(layers, tokens, HEADS, WIDTH)


def filled(tokens, family="rows"):
    return play(layers_of(family), tokens)


class Held:
    """The bytes that MLX holds beyond those at the start."""

    def __init__(self):
        self._before = mx.get_active_memory()

    def __call__(self):
        return mx.get_active_memory() - self._before


def counted(cache):
    return cache.stats()["memory"]["bytes"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", ["default", "lru", "mlx-lm"])
def test_law_16_what_is_evicted_is_free_at_once(exact, family, policy):
    held, cache = Held(), PromptCache("4MB", policy=policy)
    for seed in range(40):
        tokens = words(seed % 3, 10) + words(seed, 40)
        cache.insert("m", tokens, filled(tokens, family), "user", rows=Rows.RETURN)
        assert held() == counted(cache) <= 4_000_000
    assert sum(cache.stats()["evicted"].values()) > 10


def trimmed(cache, path):
    cache.trim_to(memory_bytes=0)


def cleared(cache, path):
    cache.clear()


def discarded(cache, path):
    cache.discard("m", path)


def lost_with_a_lease(cache, path):
    """Its rows move into layers that are never returned; the next request does not find them."""
    cache.fetch("m", [*path, 1], rows=Rows.GIVE)
    assert cache.fetch("m", [*path, 1]).layers is None


@pytest.mark.parametrize("gone", [trimmed, cleared, discarded, lost_with_a_lease])
def test_law_16_rows_are_free_whichever_way_they_go(exact, gone):
    held, cache, path = Held(), PromptCache("1GB"), words(1, 60)
    cache.insert("m", path, filled(path))
    assert held() == counted(cache) == 60 * 4 * ROW
    gone(cache, path)
    assert held() == counted(cache) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_law_16_a_span_that_is_split_or_thinned_holds_no_more_than_its_parts(exact, family):
    held, cache = Held(), PromptCache("1GB")
    path = words(1, 60)
    layers = layers_of(family)
    for end in range(6, 61, 6):  # more checkpoints than stay
        play(layers, path[end - 6 : end])
        cache.insert("m", path[:end], layers, "assistant")
    del layers
    for cut in (3, 20, 33):
        prompt = path[:cut] + words(cut, 9)
        cache.insert("m", prompt, filled(prompt, family), "user", rows=Rows.RETURN)
        assert held() == counted(cache)
    assert cache.check() == []


def test_law_16_a_cache_that_nobody_holds_any_more_frees_its_rows(exact):
    held, cache, path = Held(), PromptCache("1GB"), words(1, 60)
    cache.insert("m", path, filled(path))
    cache.insert("m", path[:30] + words(2, 30), filled(path[:30] + words(2, 30)))
    lease = cache.fetch("m", [*path, 1])
    del cache
    assert held() == sum(layer.nbytes for layer in lease.layers)
    del lease
    assert held() == 0


def test_law_16_a_hold_on_a_node_or_an_entry_keeps_no_rows(exact):
    tree = SpanTree(("assistant", "user", "system"), "default", saving=False)
    held, path = Held(), as_tokens(words(1, 60))
    layers = filled(path)
    node = tree.add("m", layout_of(layers), path, Insertion(layers, 60, "user", Rows.RETURN))
    entry = node.value.entry
    tree.evict(Limits(0), lambda node: None)
    assert held() == 0
    assert entry.item is node
    assert not node.has_value


def test_tickets_in_the_order_keep_no_entry_that_is_gone():
    order = CacheOrder()
    kept = [order.push(object(), "user", 1, 1) for _ in range(10)]
    for _ in range(5):
        order.use(kept)
    while len(order) > 3:
        order.pop()
    parts = [part for heap in order._heaps.values() for ticket in heap for part in ticket]
    assert all(isinstance(part, int | float) for part in parts)


def test_the_longest_chain_of_spans_goes_without_recursion():
    trie, order = PromptTrie(), CacheOrder()
    node, entry = trie.root("m"), None
    for token in range(50_000):
        node = trie.extend(node, as_tokens([token]))
        entry = order.push(node, "user", 1, 1, entry)
        node.value = entry
    assert len(node.path()) == 50_000
    trie.clear()
    order.clear()
    del node, entry


def descriptors():
    return sum(1 for _ in Path("/dev/fd").iterdir())


def threads():
    return sum(thread.name != "span-writer" for thread in threading.enumerate())


@pytest.mark.parametrize("disk", [False, True], ids=["memory", "disk"])
def test_law_16_three_hundred_conversations_stay_within_what_is_counted(disk, tmp_path):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    crowd = Crowd(seed, DiskStore(tmp_path, "100MB") if disk else None)
    for _ in range(150):
        crowd.converse()
    before = crowd.things()
    for _ in range(150):
        crowd.converse()
    crowd.no_more_than(before)
    assert sum(crowd.cache.stats()["evicted"].values()) > 300
    assert crowd.reused > 100
    assert crowd.cache.check() == []


class Crowd:
    """Conversations that start alike, fork, are edited, overlap and end; each step is weighed."""

    def __init__(self, seed, disk):
        self.random = random.Random(seed)
        self.held = Held()
        self.cache = PromptCache(BUDGET, disk)
        self.past = [(family, words(family, 80)) for family in FAMILIES for _ in range(2)]
        self.leases = []
        self.reused = self.largest = 0

    def converse(self):
        family, path = self.random.choice(self.past)
        path = path[: self.random.randint(1, len(path))]  # a fork, an edit, or going on
        for _ in range(self.random.randint(1, 4)):
            path = self.turn(family, path)
        self.past[self.random.randrange(len(self.past))] = (family, path[:600])
        self.random.choice((self.leave, self.leave, self.abandon, self.trim, self.discard))(path)
        self.weigh()

    def turn(self, family, path):
        prompt = path + words(self.random.random(), self.random.randint(5, 60))
        lease = self.cache.fetch(family, prompt, rows=self.random.choice([Rows.COPY, Rows.GIVE]))
        self.weigh(lease.layers)
        self.reused += lease.cached > 0
        layers = lease.layers or layers_of(family)
        assert same(play(layers, prompt[lease.cached :]), filled(prompt, family))  # law 1
        rows = self.random.choice([Rows.COPY, Rows.KEEP_OUT])
        self.cache.insert(family, prompt, layers, "user", rows=rows)
        self.weigh(layers)
        answer = words(self.random.random(), self.random.randint(2, 30))
        play(layers, answer)
        self.largest = max(self.largest, sum(layer.nbytes for layer in layers))
        if self.random.random() < 0.2:
            self.leases.append(layers)  # an answer that goes on while others come and go
        else:
            del lease
            self.cache.insert(family, prompt + answer, layers, rows=Rows.RETURN)
        self.weigh()
        return prompt + answer

    def leave(self, path):
        self.cache.flush(wait=False, short=False)

    def abandon(self, path):
        self.leases.clear()

    def trim(self, path):
        self.cache.trim_to(memory_bytes=self.random.choice(["10MB", "40MB"]))

    def discard(self, path):
        self.cache.discard("rows", path)

    def weigh(self, *out):
        """MLX holds what leases hold, what waits to be written, and what is in the budget."""
        leases = [*self.leases, *(layers for layers in out if layers)]
        leased = sum(layer.nbytes for layers in leases for layer in layers)
        stats = self.cache.stats()["memory"]
        assert stats["bytes"] <= BUDGET
        assert self.held() <= 1.1 * BUDGET + leased + stats["waiting"]
        assert stats["waiting"] <= (32 << 20) + self.largest  # the last one that was let in

    def things(self):
        """Python's objects by type, descriptors and threads, with all requests and spans gone."""
        self.cache.flush()
        self.leases.clear()
        self.cache.trim_to(memory_bytes=0)
        assert self.held() == 0
        for order in (one for one in gc.get_objects() if isinstance(one, LeafOrder)):
            order._sweep()  # tickets that are no longer valid: up to as many as entries
        # SQLite's connections keep up to 200 references each to cursors that are gone.
        alive = [o for o in gc.get_objects() if type(o) is not weakref.ref or o() is not None]
        kinds = Counter(type(o).__name__ for o in alive)
        return kinds, self.cache.stats().get("disk", {}).get("spans", 0), descriptors(), threads()

    def no_more_than(self, before):
        kinds, spans, *handles = self.things()
        # What the order and its shadow of history remember of what has gone grows up to there.
        assert kinds.pop("Ghost", 0) <= 2 * 4 * 256
        more = {name: n - before[0][name] for name, n in kinds.items()}
        # The disk is full both times, but of spans of other sizes; four orders list each one.
        disk = 4 * max(0, spans - before[1])
        assert {n: m for n, m in more.items() if m > 50 + before[0][n] // 20 + disk} == {}
        assert all(now <= then for now, then in zip(handles, before[2:], strict=True))
