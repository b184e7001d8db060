"""Other weights, another mlx-lm, an adapter, other layers: what was stored is not theirs (P1).

Each is tried on the way that a request takes: the model's own folder, its fingerprint, and a store
that was filled under the same name before.
"""

import mlx.core as mx
import pytest
from mlx_lm.models.cache import QuantizedKVCache, make_prompt_cache

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.identity import fingerprint, namespace_of, rows_identity
from llm_mlx_promptcache.cache.manifest import Manifest
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.models import facts, loading

IDS = [5, 9, 3, 7, 1, 8, 2, 6, 4, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]


class Place:
    """A model's folder and a store, each looked at as by a fresh process."""

    def __init__(self, model, store):
        self.model, self.folder = model, store

    def namespace(self, *adapters, salt="", **settings):
        loaded = loading.load_model(str(self.model))
        described = {**loading.describe(loaded), **settings}
        return namespace_of(rows_identity(self.fingerprint(*adapters), described), salt)

    def fingerprint(self, *adapters):
        return fingerprint(Manifest.of([self.model, *adapters]), {})

    def rows(self):
        model = loading.load_model(str(self.model)).model
        layers = make_prompt_cache(model)
        mx.eval(model(mx.array([IDS]), cache=layers))
        return layers

    def fill(self, namespace):
        cache = PromptCache("1GB", DiskStore(self.folder))
        cache.insert(namespace, IDS, self.rows())
        assert cache.flush() == 1

    def found(self, namespace):
        lease = PromptCache("1GB", DiskStore(self.folder)).fetch(namespace, [*IDS, 30])
        if lease.layers is not None:
            for layer, cold in zip(lease.layers, self.rows(), strict=True):
                assert mx.allclose(layer.keys[..., : len(IDS), :], cold.keys[..., : len(IDS), :])
        return lease.cached


@pytest.fixture
def place(tiny_llama, tmp_path):
    made = Place(tiny_llama(), tmp_path / "store")
    made.fill(made.namespace())
    assert made.found(made.namespace()) == len(IDS)
    return made


@pytest.mark.parametrize("package", ["mlx", "mlx-lm"])
def test_p1_another_mlx_or_mlx_lm_is_a_miss_and_the_same_one_hits_again(
    place, monkeypatch, package
):
    real, same = facts.version, place.fingerprint()
    monkeypatch.setattr(facts, "version", lambda name: "0" if name == package else real(name))
    assert place.fingerprint() == same  # answers of both are replayed alike
    older = place.namespace()
    assert place.found(older) == 0
    place.fill(older)  # both live side by side in one folder
    assert place.found(older) == len(IDS)
    monkeypatch.undo()
    assert place.found(place.namespace()) == len(IDS)
    assert DiskStore(place.folder).check() == []


def test_p1_another_device_is_a_miss(place, monkeypatch):
    same = place.fingerprint()
    monkeypatch.setattr(facts.mx, "device_info", lambda _: {"device_name": "another"})
    assert place.fingerprint() == same
    assert place.found(place.namespace()) == 0


def test_p1_one_other_weight_under_the_same_name_is_a_miss(place):
    path = next(place.model.glob("*.safetensors"))
    weights = mx.load(str(path))
    name = sorted(weights)[0]
    weights[name] = weights[name] + 0.5
    mx.eval(weights)
    path.unlink()
    mx.save_safetensors(str(path), weights)
    assert place.found(place.namespace()) == 0


def test_p1_a_changed_template_or_config_is_a_miss(place):
    before, model = place.namespace(), place.fingerprint()
    config = place.model / "tokenizer_config.json"
    config.write_text(config.read_text().replace("assistant", "Assistant"))
    assert place.namespace() != before
    assert place.fingerprint() != model  # nor do its ids mean the same any more
    assert place.found(place.namespace()) == 0


def test_p1_an_adapter_is_a_miss(place, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    mx.save_safetensors(str(adapter / "adapters.safetensors"), {"a": mx.ones((2, 2))})
    assert place.found(place.namespace(adapter)) == 0


def test_p1_other_layers_are_a_miss(place, monkeypatch):
    quantized = lambda model: [QuantizedKVCache(32, 4) for _ in model.layers]  # noqa: E731
    monkeypatch.setattr(loading, "make_layers", quantized)
    assert place.found(place.namespace()) == 0


def test_another_salt_never_meets_and_the_same_one_does(place):
    salted = place.namespace(salt="one application")
    assert place.found(salted) == 0
    place.fill(salted)
    assert place.found(place.namespace(salt="one application")) == len(IDS)
    assert place.found(place.namespace(salt="another")) == 0


def test_a_model_that_moved_still_hits(place):
    moved = place.model.with_name("moved")
    place.model = place.model.rename(moved)
    assert place.found(place.namespace()) == len(IDS)
