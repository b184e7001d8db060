"""The reason why a model is not drafted is known by name, and told to callers before an answer."""

import pytest
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache
from readers import Counting, request, together

from llm_mlx_promptcache.cache.layers.rewinding import can_rewind, kinds_that_stay
from llm_mlx_promptcache.commands.explain import _lines
from llm_mlx_promptcache.engine import draft_probe
from llm_mlx_promptcache.engine.draft_probe import prove, remembered
from llm_mlx_promptcache.engine.explained import _undrafted
from llm_mlx_promptcache.llm_adapter.logs import LoggedAnswer
from llm_mlx_promptcache.models.facts import model_facts

pytestmark = pytest.mark.drafts

MODEL = "a" * 64
WHY = "its layers of kind Odd can't go back"


class Odd(KVCache):
    """A kind of layer that nobody knows how to rewind."""


def test_layers_that_can_not_go_back_are_named():
    assert can_rewind([KVCache(), ArraysCache(2)])
    mixed = [KVCache(), CacheList(Odd(), KVCache()), Odd()]
    assert not can_rewind(mixed)
    assert kinds_that_stay(mixed) == ["Odd"]


def test_a_model_with_such_layers_is_told_by_their_kind_and_looked_at_once(
    scheduler_of, monkeypatch
):
    monkeypatch.setattr(draft_probe, "make_layers", lambda _: [KVCache(), Odd()])
    scheduler = scheduler_of()
    assert prove(scheduler._prefill._model).why == WHY
    model = scheduler._decode._batches._model = Counting(scheduler._prefill._model)
    look = request("Two?", look=True)
    assert together(scheduler, look)[0].last.undrafted == ""  # nobody has asked the model yet
    assert scheduler._drafting._proof.why_not == WHY
    assert together(scheduler, look)[0].last.undrafted == WHY
    assert model.passes == 0


@pytest.mark.parametrize(
    ("kind", "fact", "told"),
    [
        ("drafts/1", None, None),
        ("drafts/1", {"why": WHY}, WHY),
        ("drafts/1", {"why": ""}, ""),
        ("drafts/0", {"why": WHY}, None),
        ("drafts/1", {"why": 7}, None),
        ("drafts/1", ["why"], None),
    ],
)
def test_explain_tells_what_is_remembered(monkeypatch, tmp_path, kind, fact, told):
    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path))
    if fact is not None:
        model_facts().put(MODEL, kind, fact)
    assert remembered(MODEL, model_facts()) == _undrafted(MODEL) == told
    asked = request("Two?")
    answer = LoggedAnswer("1", "m", "m", asked, None, 3, None, "", {}, "")
    shown = {"prompt": 3, "stored": 0, "spans": [], "in_memory": None, "undrafted": told}
    assert any(WHY in line for line in _lines(answer, shown, None)) == (told == WHY)
