"""Memory that models, the cache and requests may take: four Macs, and a machine without a GPU."""

import families
import mlx.core as mx
import pytest
from mlx_lm.models.cache import CacheList, KVCache, QuantizedKVCache, RotatingKVCache
from played_macs import BUFFERS, PAGE, WORKING_SETS

from llm_mlx_promptcache.cache.layers.device_memory import DeviceMemory, bound_pool, device_memory
from llm_mlx_promptcache.models import memory
from llm_mlx_promptcache.models.kv_settings import KVSettings
from llm_mlx_promptcache.models.layers import arrays_of, make_layers
from llm_mlx_promptcache.models.loading import load_model
from llm_mlx_promptcache.models.memory import shares, wired_limit
from llm_mlx_promptcache.models.needs import needs_of

GB = 10**9
# 8B, 14B, 30B-A3B and 70B in 4 bits.
WEIGHTS = {8: 4.5, 16: 8.3, 24: 17.1, 128: 39.7}


def test_a_macs_memory_is_what_metal_says_of_it(play):
    play(16)
    assert device_memory() == DeviceMemory(16 << 30, WORKING_SETS[16], PAGE, BUFFERS, gpu=True)


def test_a_cpu_has_the_machines_memory_and_any_number_of_arrays_of_any_size():
    found = device_memory()
    assert found.machine == found.working_set > 0
    assert (found.page, found.buffers, found.gpu) == (1, None, False)


def test_weights_that_cannot_be_looked_at_count_as_none(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nothing")
    assert memory.weights_of(tmp_path) == 5


@pytest.mark.parametrize(
    ("size", "left", "cache", "wired"),
    [
        (8, 1.23, 0.31, 5.58),
        (16, 3.15, 0.79, 11.17),
        (24, 0.08, 0.02, 17.18),
        (128, 63.38, 4, 43.7),
    ],
)
def test_what_is_left_beside_a_model_is_shared_out(play, size, left, cache, wired):
    play(size)
    weights = int(WEIGHTS[size] * GB)
    found = shares(device_memory(), weights)
    assert found.left / GB == pytest.approx(left, abs=0.01)
    assert found.cache / GB == pytest.approx(cache, abs=0.01)
    least = WORKING_SETS[size] // 16
    assert found.requests == max(found.left - found.cache, least)
    # A model that leaves nothing has room for short prompts: a working set is advice.
    assert shares(device_memory(), weights * 10) == (0, 0, least)
    assert wired_limit(device_memory(), weights) / GB == pytest.approx(wired, abs=0.01)


@pytest.mark.parametrize("size", WORKING_SETS)
def test_the_system_keeps_its_part_whatever_is_wired(play, size):
    play(size)
    found = device_memory()
    for weights in range(0, found.machine, found.machine // 7):
        wired = wired_limit(found, weights)
        assert wired <= min(weights + 4 * GB, found.working_set)
        assert found.machine - wired >= min(int(0.35 * found.machine), 8 * GB)


@pytest.mark.parametrize("size", WORKING_SETS)
def test_a_users_word_for_the_cache_counts_and_requests_keep_half(play, size):
    play(size)
    found = shares(device_memory(), 1 * GB, 10**12)
    assert found.cache == 10**12
    assert found.requests == max(found.left // 2, WORKING_SETS[size] // 16)


def test_a_machine_without_a_gpu_leaves_the_system_its_part():
    machine = DeviceMemory(24 * GB, 24 * GB)
    assert shares(machine, 0) == (16 * GB, 4 * GB, 12 * GB)
    assert shares(DeviceMemory(8 * GB, 8 * GB), 3 * GB).left == 8 * GB * 65 // 100 - 3 * GB


def test_the_pool_is_bounded_and_no_smaller_bound_of_others_is_lifted(play):
    mac = play(24)
    bound_pool()
    assert mx.set_cache_limit(1 << 20) == mac.working_set // 32
    bound_pool()
    assert mx.set_cache_limit(1 << 20) == 1 << 20


def test_models_have_seven_tenths_of_the_working_set(play):
    play(8)
    assert memory.budget() == int(WORKING_SETS[8] * 0.7)


class Shaped:
    """A model whose layers are given, and which writes to each what one token takes."""

    def __init__(self, *layers):
        self._make = layers
        self.layers = ()

    def make_cache(self):
        return [make() for make in self._make]

    def __call__(self, tokens, cache):
        for layer in cache:
            for part in layer.caches if isinstance(layer, CacheList) else [layer]:
                rows = mx.zeros((1, 2, tokens.shape[1], 64), mx.float16)
                part.update_and_fetch(rows, rows)


ROW = 2 * 2 * 64 * 2  # keys and values x heads x width x bytes


def test_what_layers_take_is_known_from_their_shapes():
    mixed = Shaped(KVCache, lambda: RotatingKVCache(512), lambda: CacheList(KVCache(), KVCache()))
    needs = needs_of(mixed)
    assert needs.at(100) == 256 * ROW * 4
    # A window is bounded, with a chunk of a prompt beside it.
    assert needs.at(100_096) == 3 * 100_096 * ROW + (512 + 2048) * ROW
    assert (
        needs.at(needs.fitting(50_000_000)) <= 50_000_000 < needs.at(needs.fitting(50_000_000) + 1)
    )
    assert needs.fitting(0) == 0


def test_quantised_rows_take_what_they_take():
    needs, kv = needs_of(Shaped(KVCache)), KVSettings(8, 64, 1000)
    layer = KVCache()
    rows = mx.zeros((1, 2, 2048, 64), mx.float16)
    layer.update_and_fetch(rows, rows)
    quantised = layer.to_quantized(group_size=64, bits=8)
    assert isinstance(quantised, QuantizedKVCache)
    assert needs.at(2048, kv) == quantised.nbytes
    assert needs.at(512, kv) == needs.at(512)


def test_no_familys_layers_take_more_than_is_known_of_their_shapes():
    for name, family in families.BY_NAME.items():
        model = family.build()
        needs, layers = needs_of(model), make_layers(model)
        if needs is None:  # of a class whose growth nobody knows
            assert name == "deepseek_v41"
            continue
        model(mx.array([list(range(1, 4)) * 100]), cache=layers)
        taken = sum(map(buffers_of, layers))
        # A window that is filled at once grows by no steps; a state's first words are few.
        most = 2 if needs.windows else 1
        assert 0.99 * taken <= needs.at(300) <= most * taken, name


def buffers_of(layer):
    """Bytes of a layer's buffers, with their unused ends."""
    if isinstance(layer, CacheList):
        return sum(map(buffers_of, layer.caches))
    arrays = [layer.keys, layer.values] if hasattr(layer, "keys") else arrays_of(layer)
    return sum(a.nbytes for a in arrays if isinstance(a, mx.array))


def test_a_loaded_models_needs_are_what_its_layers_come_to(tiny_llama):
    loaded = load_model(str(tiny_llama(layers=3)))
    needs = needs_of(loaded.model)
    layers = loaded.model.make_cache() if hasattr(loaded.model, "make_cache") else None
    layers = layers or [KVCache() for _ in range(3)]
    loaded.model(mx.array([list(range(300))]), cache=layers)
    assert needs.at(300) == sum(layer.nbytes for layer in layers)
