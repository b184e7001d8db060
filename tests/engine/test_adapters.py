"""An adapter on top of a model: another identity, other answers, the model's own files."""

import pytest
from tiny_models import write_adapter

from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine import pool
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.models.errors import ModelLoadError
from llm_mlx_promptcache.models.loading import load_model


@pytest.fixture
def own_pool(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path / "home"))
    yield
    pool.close_engines()


def ask(reference):
    request = GenerationRequest((Message("user", "One, two?"),), max_tokens=8)
    *_, last = pool.engine_for(reference).generate(request)
    return last


def test_an_adapter_answers_otherwise_and_shares_nothing(own_pool, tiny_llama, tmp_path):
    folder = tiny_llama()
    adapters = [write_adapter(tmp_path / f"a{seed}", folder, seed) for seed in (1, 2)]
    plain = ask(str(folder))
    adapted = [ask(f"{folder}@{adapter}") for adapter in adapters]
    answers = [plain, *adapted]
    assert len({event.ids for event in answers}) == 3
    assert len({event.fingerprint for event in answers}) == 3
    assert [event.usage.cached for event in answers] == [0, 0, 0]
    assert ask(f"{folder}@{adapters[0]}").usage.prefilled == 1


def test_what_is_no_adapter_is_told_in_one_line(tiny_llama, tmp_path):
    folder = tiny_llama()
    with pytest.raises(ModelLoadError, match="no folder with an adapter"):
        load_model(f"{folder}@{tmp_path / 'nothing'}")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="can't be put on") as caught:
        load_model(f"{folder}@{broken}")
    assert "\n" not in str(caught.value)
