"""Spans that leave memory while others are still on their way to the disk get there as well.

The store's writes are held back until everything has been inserted and evicted, so each order in
which a slow disk can come to them is played, and nothing here waits for a time.
"""

import random
import threading

import pytest
from played_layers import FAMILIES, layers_of, play, same

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.prompt_cache import PromptCache

IDS = random.Random(5).choices(range(1000), k=300)
FORK = random.Random(6).choices(range(1000), k=300)


class Held(DiskStore):
    """A store that writes nothing before it is released."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.go = threading.Event()
        self.refused = []

    def save(self, span):
        assert self.go.wait(30)
        saved = super().save(span)
        if not saved:
            self.refused.append((span.start, len(span.path)))
        return saved


@pytest.fixture
def held(tmp_path):
    made = Held(tmp_path)
    yield made
    made.go.set()


def keep(cache, family, path, *ends):
    """Insert a path as an engine does, at each of these ends and at its own."""
    layers, at = layers_of(family), 0
    for end in (*ends, len(path)):
        play(layers, path[at:end])
        cache.insert(family, path[:end], layers, "user")
        at = end


def all_found(held, cache, family, paths):
    """Check, after all is written, that a cache with empty memory finds each path whole."""
    held.go.set()
    cache.flush()
    cache.trim_to(memory_bytes=0)
    for each in (cache, PromptCache("100MB", DiskStore(held.folder))):
        for path in paths:
            lease = each.fetch(family, [*path, 0])
            assert lease.cached == len(path), (lease.why, held.refused)
            assert same(lease.layers, play(layers_of(family), path))
    assert held.refused == []
    assert held.check() + cache.check() == []


@pytest.mark.parametrize("family", FAMILIES)
def test_law_3_a_leaf_that_is_evicted_while_its_parent_is_written(held, family):
    cache = PromptCache("100MB", held)
    keep(cache, family, IDS[:13])
    cache.flush(wait=False)
    keep(cache, family, IDS[:50])
    cache.trim_to(memory_bytes=0)
    all_found(held, cache, family, [IDS[:13], IDS[:50]])


@pytest.mark.parametrize("family", FAMILIES)
def test_law_3_a_longer_path_whose_shorter_one_left_memory_and_is_not_written(held, family):
    cache = PromptCache("100MB", held)
    keep(cache, family, IDS[:50], 13)
    cache.trim_to(spans=1)
    keep(cache, family, IDS[:80])
    cache.trim_to(memory_bytes=0)
    keep(cache, family, [*IDS[:60], *FORK[:40]])
    cache.trim_to(memory_bytes=0)
    all_found(held, cache, family, [IDS[:13], IDS[:50], IDS[:80], [*IDS[:60], *FORK[:40]]])


@pytest.mark.parametrize("family", FAMILIES)
def test_law_3_an_end_inside_what_is_being_written(held, family):
    cache = PromptCache("100MB", held)
    keep(cache, family, IDS[:90])
    cache.flush(wait=False)
    keep(cache, family, [*IDS[:40], *FORK[:30]], 40)  # a checkpoint where there was none
    cache.flush(wait=False)
    cache.trim_to(memory_bytes=0)
    all_found(held, cache, family, [IDS[:40], IDS[:90], [*IDS[:40], *FORK[:30]]])


@pytest.mark.parametrize("family", FAMILIES)
def test_law_3_a_fork_goes_on_behind_the_checkpoint_that_it_left_a_file_at(held, family):
    """A window that is longer than the fork starts before it, where the file has no rows of it."""
    cache = PromptCache("100MB", held)
    held.go.set()
    paths = [IDS[:90], [*IDS[:40], *FORK[:30]]]
    paths += [[*paths[1][:60], *FORK[100:120]], [*paths[1], *FORK[200:205]]]
    for path, end in zip(paths, (90, 40, 60, 70), strict=True):
        keep(cache, family, path, end)
        cache.flush()
    all_found(held, cache, family, [IDS[:40], *paths])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(12))
def test_law_3_nothing_is_lost_at_random(held, family, seed):
    chosen = random.Random(seed)
    cache = PromptCache("100MB", held)
    paths = [IDS[:60]]
    for _ in range(8):
        before = chosen.choice(paths)
        shared = chosen.choice([0, len(before), chosen.randrange(1, len(before) + 1)])
        fresh = chosen.choices(range(1000), k=chosen.randrange(1, 60))
        paths.append([*before[:shared], *fresh])
        keep(cache, family, paths[-1], *([shared] if shared > 0 else []))
        chosen.choice(
            [
                lambda: cache.flush(wait=False),
                lambda: cache.flush(wait=False, short=False),
                lambda: cache.trim_to(memory_bytes=0),
                lambda: cache.trim_to(spans=chosen.randrange(4)),
                lambda: None,
            ]
        )()
    all_found(held, cache, family, paths[1:])
