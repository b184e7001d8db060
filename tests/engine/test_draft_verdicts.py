"""The reason why a model is not drafted is known by name, and told to callers before an answer."""

import pytest
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache
from readers import Counting, request, together

from llm_mlx_promptcache.cache.layers.rewinding import can_rewind, kinds_that_stay
from llm_mlx_promptcache.commands.explain import _lines
from llm_mlx_promptcache.engine import draft_probe
from llm_mlx_promptcache.engine.draft_probe import DraftProof, prove, remembered
from llm_mlx_promptcache.engine.drafting import NO_DRAFTS
from llm_mlx_promptcache.engine.explained import AnsweredPrompt, _undrafted
from llm_mlx_promptcache.llm_adapter.logs import LoggedAnswer
from llm_mlx_promptcache.models.facts import ModelFacts, model_facts
from llm_mlx_promptcache.models.references import SERVED

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
    assert together(scheduler, look)[0].last.undrafted == WHY
    assert scheduler._drafting._proof.why_not == WHY
    assert model.passes == 0


def test_what_can_not_go_back_is_a_fact_once_the_model_is_loaded(loaded_kind, tmp_path):
    facts = ModelFacts(tmp_path / "facts.json")
    known = {"deepseek_v41": "its layers of kind LayerCache can't go back", "llama": None}
    for identity, (name, why) in zip(("a" * 64, "b" * 64), known.items(), strict=True):
        model = Counting(loaded_kind(name).model)
        proof = DraftProof(model, identity, facts)
        assert proof.known == (why or "")
        assert remembered(identity, ModelFacts(tmp_path / "facts.json")) == why
        assert model.passes == 0
    assert proof.why_not == ""
    assert model.passes
    assert remembered("b" * 64, facts) == ""


def test_a_fact_of_other_layers_is_not_believed(loaded_kind, tmp_path, monkeypatch):
    facts = ModelFacts(tmp_path / "facts.json")
    facts.put(MODEL, draft_probe._KIND, {"why": ""})
    monkeypatch.setattr(draft_probe, "make_layers", lambda _: [Odd()])
    assert DraftProof(loaded_kind("llama").model, MODEL, facts).why_not == WHY
    assert remembered(MODEL, facts) == WHY


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
    asked = AnsweredPrompt(request("Two?"), "m", "", MODEL, {})
    assert remembered(MODEL, model_facts()) == _undrafted(asked) == told
    answer = LoggedAnswer("1", "m", "m", asked.request, None, 3, None, "", {}, "")
    shown = {"prompt": 3, "stored": 0, "spans": [], "in_memory": None, "undrafted": told}
    lines = [line for line in _lines(answer, shown, None) if "drafted" in line]
    assert [WHY in line for line in lines] == {None: [False], "": [], WHY: [True]}[told]


def test_a_model_over_several_machines_is_not_drafted_whatever_was_found_of_it(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path))
    model_facts().put(MODEL, draft_probe._KIND, {"why": ""})
    asked = AnsweredPrompt(request("Two?"), f"{SERVED}large", "", MODEL, {})
    assert _undrafted(asked) == NO_DRAFTS
