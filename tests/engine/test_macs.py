"""Macs of 8 to 128 GB, played whole: models load, requests are let in or refused, spans leave.

Each has a model that leaves 8 MB of its working set, so that a tiny model comes to the bounds.
"""

import random

import pytest
from played_macs import BUFFERS, PAGE, WORKING_SETS, PlayedCuda, playing
from readers import Reader, request, together

from llm_mlx_promptcache.cache.layers import device_memory
from llm_mlx_promptcache.cache.layers.device_memory import DeviceMemory
from llm_mlx_promptcache.cache.memory.budget import MemoryBudget
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.config import change_settings
from llm_mlx_promptcache.engine import admission, pool, scheduler
from llm_mlx_promptcache.engine.admission import Admission
from llm_mlx_promptcache.engine.events import Loading, Progress
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.models import memory
from llm_mlx_promptcache.models.errors import PromptTooLargeError

LEFT = 8_000_000
SIZES = pytest.mark.parametrize("size", WORKING_SETS)


@pytest.fixture(scope="module")
def folder(tiny_llama):
    """A model whose rows take 2 KB a token."""
    return str(tiny_llama(layers=8, context=8192))


@pytest.fixture
def mac_of(play, tmp_path, monkeypatch):
    """`mac_of(size)`: a Mac on which other models leave LEFT bytes, and nothing more is let in."""
    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path))
    monkeypatch.setattr(memory, "_LEAST_PART", 10**12)
    yield lambda size: play(size, weights=WORKING_SETS[size] - LEFT)
    pool.close_engines()


def asked(folder, words, seed=0, **more):
    text = " ".join(random.Random(seed).choices(["the", "user", "answer", "of", "and"], k=words))
    return pool.engine_for(folder).generate(
        GenerationRequest((Message("user", text),), **{"max_tokens": 3, **more})
    )


def ask(folder, words, seed=0, **more):
    *_, last = asked(folder, words, seed, **more)
    return last


def held():
    return pool.shared_cache().stats()["memory"]


@SIZES
def test_a_mac_loads_answers_and_evicts_within_its_budgets(mac_of, folder, size):
    mac = mac_of(size)
    for seed in range(8):
        assert ask(folder, 60, seed).usage.generated == 3
        found = held()
        assert 0 < found["bytes"] <= found["budget"]
        assert found["bytes"] % PAGE == 0
        assert found["buffers"] <= BUFFERS // 2
    # A quarter of what the loaded model left of it.
    weights = pool.weights()[folder]
    assert (LEFT - 2 * weights) // 4 < found["budget"] <= LEFT // 4
    assert sum(pool.shared_cache().stats()["evicted"].values()) > 3
    assert pool.shared_cache().check() == []
    assert mac.wired[-1] <= min(weights * 2 + 4_000_000_000, WORKING_SETS[size])
    assert mac.wired[-1] > 4_000_000_000
    pool.close_engines()
    assert mac.wired[-1] == 0


@SIZES
def test_what_can_not_fit_is_refused_before_it_is_computed(mac_of, folder, size):
    mac_of(size)
    ask(folder, 20)
    before = pool.shared_cache().stats()
    events = []
    with pytest.raises(
        PromptTooLargeError, match=r"has \d+ tokens, which take .* tokens fit"
    ) as no:
        events.extend(asked(folder, 3500))
    assert all(isinstance(event, Loading) for event in events)
    after = pool.shared_cache().stats()
    assert {**after, "memory": 0, "disk": 0} == {**before, "memory": 0, "disk": 0}
    # What is said to fit does, and a token more does not.
    fits = int(str(no.value).rpartition(":")[2].split()[0])
    limit = pool._requests.limit / admission.PEAK
    assert (fits + 3) * 2048 <= limit < (fits + 3 + 512) * 2048
    assert ask(folder, 60).usage.generated == 3


@SIZES
def test_a_budget_that_nobody_keeps_is_seen_to_be_broken(mac_of, folder, size, monkeypatch):
    """Each of the two checks above sees a fault: here nothing is evicted and nothing refused."""
    mac_of(size)
    monkeypatch.setattr(MemoryBudget, "evict", lambda self, limits: None)
    monkeypatch.setattr(Admission, "check", lambda self, tokens, limit, kv: None)
    for seed in range(8):
        ask(folder, 60, seed)
    assert held()["bytes"] > held()["budget"]
    events = asked(folder, 3500)
    next(event for event in events if isinstance(event, Progress) and event.done)
    events.close()


def test_a_gpu_without_metal_keeps_its_budgets_and_wires_nothing(folder, tmp_path, monkeypatch):
    """As MLX's CUDA backend tells it: bytes in all, no pages and no number of buffers."""
    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path))
    monkeypatch.setattr(memory, "_LEAST_PART", 10**12)
    total = 80 << 30
    with playing(PlayedCuda(total, total - LEFT)):
        assert device_memory.device_memory() == DeviceMemory(total, total, gpu=True)
        for seed in range(12):
            assert ask(folder, 200, seed).usage.generated == 3
            assert 0 < held()["bytes"] <= held()["budget"] <= LEFT // 4
        assert sum(pool.shared_cache().stats()["evicted"].values()) > 3
        assert device_memory.pooled() < 1000
        with pytest.raises(PromptTooLargeError):
            list(asked(folder, 3500))
        pool.close_engines()


@pytest.mark.parametrize("gives_back", [True, False])
def test_no_freed_rows_stay_behind_an_answer(scheduler_of, play, monkeypatch, gives_back):
    play(16)
    made = scheduler_of()
    if not gives_back:  # or this test could not fail
        monkeypatch.setattr(scheduler, "trim_pool", lambda most=0: None)
    readers = [Reader(request(text, max_tokens=40)) for text in ("One?", "Two?")]
    together(made, *readers)
    assert (device_memory.pooled() < 1000) == gives_back
    made.settle()
    assert (device_memory.pooled() < 1000) == gives_back


def test_a_users_budget_counts_on_any_mac(mac_of, folder):
    mac_of(8)
    change_settings(lambda old: old.changed(memory="6MB"))
    ask(folder, 20)
    assert held()["budget"] == 6_000_000


def test_a_second_model_leaves_less(mac_of, folder, tiny_llama):
    mac_of(16)
    ask(folder, 20)
    first, requests = held()["budget"], pool._requests.limit
    ask(str(tiny_llama(layers=12, seed=3)), 20)
    assert 0 < held()["budget"] < first
    assert 0 < pool._requests.limit < requests


def test_a_cpu_is_warned_once_and_answers(folder, tmp_path, monkeypatch, caplog):
    """Its system swaps, so nothing has to fail."""
    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path))
    ask(folder, 20)
    pool._requests.limit = 1_000_000
    for seed in range(2):
        assert ask(folder, 300, seed).usage.generated == 3
    (line,) = [r.message for r in caplog.records if "tokens fit" in r.message]
    assert line.endswith("this machine may swap now")
    pool.close_engines()
