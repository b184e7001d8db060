"""Eight threads on one cache: no exception, no drift, every row the one that was stored."""

import os
import random
import threading

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.insertion import Rows
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.cache.store import NullStore
from llm_mlx_promptcache.models.threads import leave_thread

ROW = 2 * 1 * 4 * 4  # keys and values x heads x width x bytes
TIERS = ("assistant", "user", "system")


def spell(layer, ids):
    """Rows that read as their tokens, so that a wrong one shows."""
    rows = mx.broadcast_to(mx.array(ids, mx.float32)[None, None, :, None], (1, 1, len(ids), 4))
    layer.update_and_fetch(rows, -rows)
    mx.eval(layer.state)


def work(cache, seed, rounds, errors):
    rng = random.Random(seed)
    prefixes = [random.Random(number).choices(range(50), k=30) for number in range(6)]
    try:
        for _ in range(rounds):
            ids = [*rng.choice(prefixes)[: rng.randint(1, 30)], *rng.choices(range(50), k=8)]
            lease = cache.fetch("m", ids, rows=Rows.GIVE if rng.random() < 0.3 else Rows.COPY)
            (layer,) = lease.layers or [KVCache()]
            if lease.layers:
                held = layer.keys[0, 0, : layer.offset, 0].tolist()
                assert [int(row) for row in held] == ids[: lease.cached]
            spell(layer, ids[lease.cached :])
            if rng.random() < 0.9:
                cache.insert(
                    "m", ids, [layer], rng.choice(TIERS), rows=rng.choice([Rows.COPY, Rows.RETURN])
                )
            if rng.random() < 0.05:
                cache.trim_to(memory_bytes=ROW * rng.randint(0, 200))
            if rng.random() < 0.05:
                cache.flush()
            if rng.random() < 0.02:
                assert cache.check() == []
            assert cache.stats()["memory"]["bytes"] <= ROW * 400
    except BaseException as error:
        errors.append(error)
    finally:
        del cache
        leave_thread()


@pytest.mark.parametrize("rounds", [100, pytest.param(1500, marks=pytest.mark.soak)])
@pytest.mark.parametrize("kept", ["memory", "disk"])
def test_eight_threads(rounds, kept, tmp_path):
    seed = int(os.environ.get("SEED", random.randrange(1 << 30)))
    print(f"SEED={seed}")
    store = DiskStore(tmp_path) if kept == "disk" else NullStore()
    cache = PromptCache(ROW * 400, store)
    errors = []
    threads = [
        threading.Thread(target=work, args=(cache, seed + number, rounds, errors))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert cache.check() == []
    assert cache.stats()["hits"] > 100
    if kept == "disk":
        assert store.check() == []
