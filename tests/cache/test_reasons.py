"""Law 16: each reason given is true, held against the fact that it states."""

import gc
import random

import pytest
from played_layers import FAMILIES
from test_nothing_lost import Held, keep

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.insertion import Rows
from llm_mlx_promptcache.cache.prompt_cache import PromptCache

IDS = random.Random(11).choices(range(1000), k=100)


def reasons(cache, family, ids):
    """The reason why a prompt would not reuse more, and the reason when it does not; both agree."""
    said = cache.explain(family, ids)
    lease = cache.fetch(family, ids)
    assert said == lease.why
    return said.reason, lease.cached


@pytest.mark.parametrize("family", FAMILIES)
def test_law_16_what_only_the_disk_holds_is_not_called_cold(tmp_path, family):
    cache = PromptCache("100MB", DiskStore(tmp_path))
    keep(cache, family, IDS[:60])
    cache.flush()
    again = PromptCache("100MB", DiskStore(tmp_path))
    assert again.explain(family, [*IDS[:60], 0]).reason == "whole"
    assert again.stats()["memory"]["spans"] == again.stats()["misses"] == 0
    assert reasons(again, family, [*IDS[:60], 0, 1]) == ("diverged", 60)
    assert reasons(again, family, [1001, *IDS]) == ("cold", 0)
    cut_anywhere = family == "rows"
    assert reasons(again, family, [*IDS[:50], 0]) == (
        ("whole", 50) if cut_anywhere else ("checkpoint", 0)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_law_16_after_a_clear_nothing_is_stored_and_nothing_else_is_said(family):
    cache = PromptCache("100MB")
    keep(cache, family, IDS[:60])
    cache.clear()
    assert reasons(cache, family, IDS) == ("cold", 0)
    assert "no cached prompt starts" in str(cache.explain(family, IDS))


@pytest.mark.parametrize("family", ["rows", "windows", "state"])
def test_law_16_rows_that_another_request_has_are_lent_and_then_lost(family):
    cache = PromptCache("100MB")
    keep(cache, family, IDS[:60])
    lease = cache.fetch(family, [*IDS[:60], 0], rows=Rows.GIVE)
    assert lease.cached == 60
    assert reasons(cache, family, [*IDS[:60], 0]) == ("lent", 0)
    del lease
    gc.collect()
    cache.fetch(family, [1001, 0])
    assert reasons(cache, family, [*IDS[:60], 0])[0] in ("cold", "lent")


@pytest.mark.parametrize("family", FAMILIES)
def test_law_16_what_is_on_its_way_can_be_resumed_once_it_is_there(tmp_path, family):
    store = Held(tmp_path)
    cache = PromptCache("100MB", store)
    keep(cache, family, IDS[:60])
    cache.flush(wait=False)
    cache.clear()
    prompts = [[*IDS[:60], 0], [*IDS[:50], 0]]
    said = [reasons(cache, family, prompt) for prompt in prompts]
    store.go.set()
    cache.flush()
    for prompt, (reason, cached) in zip(prompts, said, strict=True):
        assert (reason == "writing") == (cache.fetch(family, prompt).cached > cached)
    assert said[0] == ("writing", 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_law_16_evicted_and_then_stored_again(family):
    cache = PromptCache("100MB")
    keep(cache, family, IDS[:60])
    cache.trim_to(memory_bytes=0)
    assert reasons(cache, family, IDS) == ("evicted", 0)
    keep(cache, family, IDS[:60])
    assert reasons(cache, family, IDS) == ("diverged", 60)
    cache.discard(family, IDS[:60])  # its owner wanted it no more, there was room for it
    assert reasons(cache, family, IDS) == ("cold", 0)
