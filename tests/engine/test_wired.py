"""Wired memory: held from a model's first answer until it is unloaded, or nobody asks it."""

import sys
import threading

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from readers import Reader, request, together

from llm_mlx_promptcache.cache import device
from llm_mlx_promptcache.engine import engine as engines
from llm_mlx_promptcache.engine import scheduler as schedulers
from llm_mlx_promptcache.engine import wired
from llm_mlx_promptcache.engine.scheduler import Scheduler
from llm_mlx_promptcache.engine.wired import WiredMemory

GB = 10**9


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """A limit of this test's own: the process's is held by what other tests left idle."""
    made = WiredMemory()
    monkeypatch.setattr(schedulers, "WIRED", made)
    return made


def test_it_stays_wired_between_answers_and_is_given_back_at_rest(scheduler_of, play):
    mac = play(16)
    scheduler = scheduler_of()
    for text in ("One?", "Two?"):
        together(scheduler, request(text, max_tokens=3))
    weights = sum(a.nbytes for a in _parameters(scheduler))
    assert mac.wired == [0, weights + 4 * GB]
    scheduler.rest()
    assert mac.wired[-1] == 0
    together(scheduler, request("Three?", max_tokens=3))
    assert mac.wired[-1] == weights + 4 * GB
    scheduler.settle(last=True)
    assert mac.wired[-1] == 0


def _parameters(scheduler):
    return (value for _, value in tree_flatten(scheduler._prefill._model.parameters()))


def test_models_at_work_share_one_limit(scheduler_of, play):
    mac = play(16)
    first, second = scheduler_of(), scheduler_of()
    first.add(Reader(request("One?", max_tokens=30)))
    together(second, request("Two?", max_tokens=3))
    assert first.busy
    both = 4 * GB + 2 * sum(a.nbytes for a in _parameters(first))
    assert mac.wired[-1] == both
    second.rest()
    assert mac.wired[-1] == both  # never lowered under a model at work
    together(first)
    first.rest()
    assert mac.wired[-1] == 0


def test_a_limit_that_somebody_had_set_is_given_back(play):
    mac, memory = play(24), WiredMemory()
    mac.wired.append(3 * GB)
    memory.hold(1, 5 * GB)
    memory.hold(1, 5 * GB)
    memory.release(1)
    memory.release(1)
    assert mac.wired == [0, 3 * GB, 9 * GB, 3 * GB]


def test_a_device_that_fails_at_rest_keeps_nothing_wired(play, monkeypatch):
    mac, memory = play(8), WiredMemory()
    memory.hold(1, GB)

    def failing():
        raise RuntimeError("[METAL] Command buffer execution failed")

    with monkeypatch.context() as patched:
        patched.setattr(device.mx, "synchronize", failing)
        with pytest.raises(RuntimeError, match="METAL"):
            memory.release(1)
    assert mac.wired[-1] == 0
    memory.hold(1, GB)
    assert mac.wired[-1] == 5 * GB
    memory.release(1)
    assert mac.wired[-1] == 0


def test_a_request_that_fails_keeps_the_count_right(scheduler_of, play, monkeypatch):
    mac = play(8)
    scheduler = scheduler_of()
    scheduler.add(Reader(request("One?", max_tokens=3)))
    scheduler.fail(RuntimeError("the device failed"))
    together(scheduler, request("Two?", max_tokens=3))
    scheduler.rest()
    assert mac.wired[-1] == 0


def test_mlx_lms_warning_of_large_models_is_not_on_stdout(scheduler_of, play, monkeypatch, capfd):
    """A script reads answers there: `mlx_lm.generate.wired_limit` prints to it."""
    generating = sys.modules["mlx_lm.generate"]
    monkeypatch.setattr(generating, "maybe_set_recommended_wired_limit", lambda: 0)
    monkeypatch.setattr(mx, "device_info", lambda *_: {"max_recommended_working_set_size": 1})
    monkeypatch.setattr(mx, "set_wired_limit", lambda limit: 0)
    play(16)
    scheduler = scheduler_of()
    with generating.wired_limit(scheduler._prefill._model):
        assert "[WARNING]" in capfd.readouterr().out
    together(scheduler, request("One?", max_tokens=3))
    scheduler.rest()
    assert capfd.readouterr().out == ""


def test_without_a_gpu_nothing_is_wired(monkeypatch):
    def never(limit):
        raise AssertionError

    monkeypatch.setattr(wired.device_memory, "wire", never)
    memory = WiredMemory()
    memory.hold(1, GB)
    memory.release(1)


def test_an_engine_that_nobody_asks_rests(engine_of, tiny_llama, play, monkeypatch):
    mac = play(16)
    monkeypatch.setattr(engines, "IDLE", 0)
    rested, rest = threading.Event(), Scheduler.rest
    monkeypatch.setattr(Scheduler, "rest", lambda self: rest(self) or rested.set())
    engine = engine_of(tiny_llama())
    *_, _last = engine.generate(request("One?", max_tokens=3))
    assert rested.wait(60)
    assert (len(mac.wired), mac.wired[-1]) == (3, 0)
    assert engine.loaded
