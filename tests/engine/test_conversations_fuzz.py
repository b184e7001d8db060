"""Random conversations beside cold ones, over random families: a short share, and in the soak.

FUZZ_SECONDS (600) is how long the soak's goes on, SOAK_SHARE what part of that; SEED plays one
run again, as does `python tests/engine/conversation_fuzz.py one SEED`.
"""

import os
import random
import time

import conversation_fuzz as fuzz
import conversations
import pytest

from llm_mlx_promptcache.cache.prompt_cache import PromptCache

pytestmark = pytest.mark.drafts

# One of each kind of layer: rows, a window, quantised rows, a state, a hybrid, a list.
SHORT = [(4, ["llama"]), (14, ["gemma3_text"]), (2, ["llama"]), (6, ["mamba2"]), (3, ["llama4"])]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path / "home"))
    return str(conversations.write_model(tmp_path / "model"))


def played(seed, names, folder, tmp_path, **changed):
    """A run of a seed, which is told where it fails."""
    run = fuzz.Run.of(seed, names)._replace(**changed)
    print("seed", seed, run)
    return fuzz.play(run, folder, tmp_path / f"store-{seed}")


@pytest.mark.parametrize(("seed", "names"), SHORT, ids=lambda value: str(value))
def test_law_1_a_short_conversation_of_each_kind(seed, names, folder, tmp_path):
    made = played(seed, names, folder, tmp_path, steps=10)
    assert made.cached > made.prompts / 4


def test_a_cache_that_always_misses_is_noticed(folder, tmp_path, monkeypatch):
    fetch = PromptCache.fetch

    def miss(cache, namespace, *asked, **more):
        return fetch(cache, "nobody's", *asked, **more)

    monkeypatch.setattr(PromptCache, "fetch", miss)
    made = played(*SHORT[0], folder, tmp_path, steps=8)
    assert made.cached == 0 < made.prompts


def test_rows_of_another_conversation_are_noticed(folder, tmp_path, monkeypatch):
    fetch = PromptCache.fetch

    def wrong(cache, *asked, **more):
        lease = fetch(cache, *asked, **more)
        for layer in lease.layers or ():
            layer.keys[..., : lease.cached, :] *= 1.01
        return lease

    monkeypatch.setattr(PromptCache, "fetch", wrong)
    with pytest.raises(fuzz.Wrong, match="token"):
        played(*SHORT[0], folder, tmp_path, steps=8)


@pytest.mark.soak
def test_law_1_conversations_at_random(folder, tmp_path, soak_share):
    seconds = soak_share * float(os.environ.get("FUZZ_SECONDS", "600"))
    first = int(os.environ.get("SEED", random.randrange(1 << 30)))
    ends, prompts, cached, wrong = time.monotonic() + seconds, 0, 0, []
    seed = first
    while seed == first or (time.monotonic() < ends and "SEED" not in os.environ):
        try:
            made = played(seed, fuzz.NAMES, folder, tmp_path)
        except fuzz.Wrong as error:
            wrong.append(f"seed {seed}: {error}")
        else:
            prompts, cached = prompts + made.prompts, cached + made.cached
        seed += 1
    print(f"{seed - first} runs, {cached} of {prompts} tokens reused")
    assert not wrong, "\n".join(wrong)
    assert cached > prompts / 4
