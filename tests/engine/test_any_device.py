"""Laws of every device: CI runs this file on a Mac's GPU too, beside the suite on its CPU."""

import json
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache

from llm_mlx_promptcache.cache.disk.file_ids import PACK_SUFFIX
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.layers.device_memory import device_memory
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.events import Finished
from llm_mlx_promptcache.engine.pool import close_engines, engine_for
from llm_mlx_promptcache.engine.request import GenerationRequest

SYSTEM = Message("system", "the answer of the system " * 30)
QUESTION = Message("user", "Hello capital of the user")
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}


@pytest.fixture(scope="module")
def folder(tiny_llama):
    return str(tiny_llama())


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path / "own"))
    yield
    close_engines()


def ask(folder, *messages, **more):
    """The end of an answer."""
    request = GenerationRequest(messages or (SYSTEM, QUESTION), max_tokens=40, **more)
    return next(e for e in engine_for(folder).generate(request) if isinstance(e, Finished))


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("coded", ["as they are", "coded"])
def test_rows_come_back_bit_for_bit(tmp_path, kind, coded):
    layer = KVCache()
    rows = mx.random.normal((1, 2, 300, 64), key=mx.random.key(3)).astype(getattr(mx, kind))
    layer.update_and_fetch(rows, rows * 2)
    ids = list(range(300))
    cache = PromptCache("100MB", DiskStore(tmp_path))
    cache.insert("m", ids, [layer])
    cache.flush()
    if coded == "coded":  # as what rested for a day
        store = DiskStore(tmp_path)
        later = store._files.now() + 2 * 86400
        store._files.now = lambda: later
        assert [*store.compact()]
        assert any(tmp_path.glob(f"spans/*{PACK_SUFFIX}")) == (kind == "bfloat16")
    lease = PromptCache("100MB", DiskStore(tmp_path)).fetch("m", [*ids, 5])
    assert lease.cached == 300
    bits = mx.uint32 if kind == "float32" else mx.uint16
    for found, wanted in ((lease.layers[0].keys, rows), (lease.layers[0].values, rows * 2)):
        same = found[..., :300, :].view(bits) == wanted.view(bits)
        assert mx.all(same).item()


def test_a_prompt_that_is_asked_again_is_not_computed_again(folder):
    first, second = ask(folder), ask(folder)
    assert (first.usage.cached, second.usage.cached) == (0, first.usage.prompt - 1)
    close_engines()
    third = ask(folder)
    assert third.usage.cached == third.usage.prompt - 1
    # The same rows and the same one token in the same kernels: the very same answer.
    assert second.ids == third.ids


def test_warm_is_cold_up_to_the_rounding_of_other_chunks(folder):
    """The first token's log probability; kernels of a GPU differ by the rows that they have."""
    ask(folder, SYSTEM, Message("user", "and other words"))
    warm, cold = (ask(folder, use_cache=cached, logprobs=1) for cached in (True, False))
    assert warm.usage.cached > 0 == cold.usage.cached
    both = [one.logprobs[0].chosen.logprob for one in (warm, cold)]
    assert both[0] == pytest.approx(both[1], abs=0.05 if device_memory().gpu else 1e-4)


def test_a_grammar_holds(folder):
    found = ask(folder, schema=SCHEMA)
    assert json.loads(found.text).keys() == {"a"}


def test_many_are_answered_at_once(folder):
    questions = [(SYSTEM, Message("user", text)) for text in ("Hello", "and", "the answer")]
    with ThreadPoolExecutor(len(questions)) as threads:
        found = list(threads.map(lambda messages: ask(folder, *messages), questions))
    assert all(one.usage.generated == len(one.ids) > 0 for one in found)


def test_the_machine_tells_its_memory():
    found = device_memory()
    assert 0 < found.working_set <= found.machine
    assert found.gpu == (mx.default_device().type == mx.DeviceType.gpu)
