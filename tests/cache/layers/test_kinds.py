"""Classes of layers that mlx-lm does not know: a model's own, and those that plugins bring."""

import logging
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import pytest
from mlx_lm.models.cache import BatchKVCache, KVCache

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.layers import layout as layouts
from llm_mlx_promptcache.cache.layers import own_state
from llm_mlx_promptcache.cache.layers import plugins as layer_plugins
from llm_mlx_promptcache.cache.layers.errors import UnknownKind
from llm_mlx_promptcache.cache.layers.kinds import State
from llm_mlx_promptcache.cache.layers.layout_text import layout_from_text
from llm_mlx_promptcache.cache.prompt_cache import PromptCache

PATH = list(range(10, 30))


class Sums:
    """A layer as a model might bring it: the sums of what it saw, and how much that was."""

    def __init__(self, width=4):
        self.sums, self.last, self.offset, self.width = None, None, 0, width

    @property
    def state(self):
        return self.sums, self.last, self.offset, self.width

    @state.setter
    def state(self, state):
        self.sums, self.last, self.offset, self.width = state

    def see(self, tokens):
        for token in tokens:
            seen = mx.full((1, self.width), float(token))
            self.sums = seen if self.sums is None else self.sums * 0.5 + seen
        self.offset += len(tokens)
        return self


class Forgetful(Sums):
    """A layer whose state does not hold everything about it."""

    @property
    def state(self):
        return self.sums, self.offset

    @state.setter
    def state(self, state):
        self.sums, self.offset = state


class Nested(Sums):
    @property
    def state(self):
        return [self.sums, [self.offset]]

    @state.setter
    def state(self, state):
        self.sums, (self.offset,) = state


class Slotted:
    __slots__ = ("state",)


class Unset(Sums):
    state = property(lambda self: (self.sums,))


def same(a, b):
    return a.offset == b.offset and bool(mx.array_equal(a.sums, b.sums))


def test_a_class_whose_state_round_trips_is_kept_at_checkpoints(store):
    cache = PromptCache("1MB", store)
    layer = Sums()
    for end in (8, 20):
        cache.insert("m", PATH[:end], [layer.see(PATH[layer.offset : end])])
    cache.flush()
    caches = [cache] if not isinstance(store, DiskStore) else [cache, PromptCache("1MB", store)]
    for one in caches:
        for prompt, held in [([*PATH, 1], 20), (PATH, 8), ([*PATH[:15], 1], 8), (PATH[:8], 0)]:
            lease = one.fetch("m", prompt)
            assert lease.cached == held
            if held:
                (warm,) = lease.layers
                assert type(warm) is Sums
                assert (warm.last, warm.width) == (None, 4)
                assert same(warm.see(prompt[held:]), Sums().see(prompt))
        assert one.check() == []


def test_a_class_named_in_a_file_is_never_looked_up(tmp_path, monkeypatch):
    cache = PromptCache("1MB", DiskStore(tmp_path))
    cache.insert("m", PATH, [Sums().see(PATH)])
    cache.flush()
    monkeypatch.setattr(own_state, "_seen", {})  # as a new process is
    again = PromptCache("1MB", DiskStore(tmp_path))
    assert again.fetch("m", [*PATH, 1]).layers is None
    layouts.layout_of([Sums()])  # now it was seen alive
    assert again.fetch("m", [*PATH, 1]).cached == len(PATH)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (Forgetful(), "does not hold last, width"),
        (Nested(), "no flat sequence"),
        (Unset(), "can't be set"),
        (Slotted(), "can't be set"),
        (object(), "can't be set"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_what_does_not_round_trip_is_not_cached_and_told_why(made, words):
    with pytest.raises(layouts.NotCached, match=words):
        layouts.layout_of([made])


def test_a_batch_of_sequences_is_not_cached():
    with pytest.raises(layouts.NotCached, match="BatchKVCache can't be kept: it is not made for"):
        layouts.layout_of([BatchKVCache([0])])


class Counter(Sums):
    """The layer that the plugin below brings a kind for."""

    state = property(lambda self: (self.sums,))


@dataclass(frozen=True)
class Counted(State):
    name: ClassVar[str] = "counted"

    def position(self, layer):
        return layer.offset

    def cut(self, layer, at, start, end):
        return (mx.array(layer.sums), mx.array([layer.offset])) if end == at else None

    def join(self, views, count, room):
        piece = next(v.piece for v in views if v.end == count == v.span_end)
        layer = Counter()
        layer.sums, layer.offset = piece[0][...], int(piece[1].item())
        return layer


class Plugin:
    @layer_plugins.hookimpl
    def register_layer_kinds(self, register):
        register(Counter, Counted, lambda layer: Counted(2))


class Broken:
    @layer_plugins.hookimpl
    def register_layer_kinds(self, register):
        raise RuntimeError("I am broken")


@pytest.fixture
def plugins(monkeypatch):
    """Plugins of this test alone."""
    monkeypatch.setattr(layouts, "_KINDS", dict(layouts._KINDS))
    monkeypatch.setattr(layouts, "_KIND_OF", dict(layouts._makers()))
    manager = layer_plugins.plugin_manager()
    made = [Broken(), Plugin()]
    for plugin in made:
        manager.register(plugin)
    layouts.load_layer_kinds.cache_clear()
    yield made
    for plugin in made:
        manager.unregister(plugin)
    layouts.load_layer_kinds.cache_clear()


def test_a_plugin_brings_a_kind(plugins, store, caplog):
    cache = PromptCache("1MB", store)
    with caplog.at_level(logging.WARNING):
        cache.insert("m", PATH[:8], [Counter().see(PATH[:8])])
    assert "I am broken" in caplog.text
    cache.flush()
    caches = [cache] if not isinstance(store, DiskStore) else [cache, PromptCache("1MB", store)]
    for one in caches:
        lease = one.fetch("m", PATH)
        assert lease.cached == 8
        assert same(lease.layers[0].see(PATH[8:]), Counter().see(PATH))


def test_a_kind_from_a_file_is_found_before_any_layer_was_seen(plugins):
    assert layout_from_text('[[2, ["counted", {"arity": 2}]]]') == (Counted(2), Counted(2))
    with pytest.raises(UnknownKind, match="nobody's"):
        layout_from_text('[[2, ["nobody\'s", {}]]]')


def test_what_is_known_can_not_be_replaced(plugins):
    layouts.load_layer_kinds()
    with pytest.raises(ValueError, match="KVCache have a kind already"):
        layouts.register_layer_kind(KVCache, Counted, lambda layer: Counted(2))
    with pytest.raises(ValueError, match="named 'state' is there already"):
        layouts.register_layer_kind(Nested, type("Mine", (), {"name": "state"}), lambda layer: None)
