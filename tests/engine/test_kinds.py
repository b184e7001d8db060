"""The engine over every kind of layer: each turn prefills what is new, answers stay the same."""

import dataclasses
import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llm_mlx_promptcache.cache.disk import DiskStore
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.messages import Generated, Message
from llm_mlx_promptcache.engine.engine import Engine
from llm_mlx_promptcache.engine.loading import LoadedModel, load_model
from llm_mlx_promptcache.engine.request import Finished, GenerationRequest
from llm_mlx_promptcache.engine.running import Running

_path = Path(__file__).parent.parent / "cache" / "families.py"
_spec = importlib.util.spec_from_file_location("families", _path)
families = sys.modules["families"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(families)

KINDS = ["llama", "gemma3_text", "gpt_oss", "mamba2", "jamba", "qwen3_next", "llama4"]
SYSTEM = Message("system", "You keep a lighthouse and answer in few words.")


@pytest.fixture
def engine_of_kind(tiny_llama):
    """`engine_of_kind(name, cache)`: a random model of a family with the tiny tokenizer."""
    made = []

    def make(name, cache):
        def load():
            base = load_model(str(tiny_llama()))
            family = families.BY_NAME[name]
            words = base.config["vocab_size"]
            family = dataclasses.replace(family, own={**family.own, "vocab_size": words})
            loaded = LoadedModel(family.build(), base.tokenizer, base.config, base.folder, 4096)
            return Running(loaded, name, cache)

        made.append(Engine(load))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def ask(engine, history, **more):
    request = GenerationRequest(tuple(history), **{"max_tokens": 6, **more})
    *_, last = engine.generate(request)
    assert isinstance(last, Finished)
    return last


def answered(event):
    kept = Generated.of(event.ids, event.text, event.fingerprint)
    return Message("assistant", event.text, kept)


@pytest.mark.parametrize("name", KINDS)
def test_turns_forks_and_repeats_prefill_what_is_new(name, engine_of_kind):
    cache = PromptCache("500MB")
    engine = engine_of_kind(name, cache)
    history, path = [SYSTEM, Message("user", "One?")], 0
    for turn in range(4):
        event = ask(engine, history)
        assert event.usage.cached == path
        assert ask(engine, history, use_cache=False).ids == event.ids
        path = event.usage.prompt + event.usage.generated
        history += [answered(event), Message("user", f"And {turn}?")]
    fork = [*history[:-1], Message("user", "Something else?")]
    forked = ask(engine, fork)
    assert forked.usage.cached >= path
    assert ask(engine, fork, use_cache=False).ids == forked.ids
    again = ask(engine, fork)
    # Rows resume at the last token; what can't be cut, where the user's message ends.
    assert again.usage.prefilled <= len("<|im_start|>assistant\n")
    assert cache.check() == []


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "mamba2", "jamba"])
def test_a_restart_goes_on_from_the_disk(name, engine_of_kind, tmp_path):
    store = DiskStore(tmp_path)
    first_engine = engine_of_kind(name, PromptCache("500MB", store))
    history = [SYSTEM, Message("user", "One?")]
    first = ask(first_engine, history)
    first_engine.close()
    history += [answered(first), Message("user", "Two?")]
    second = ask(engine_of_kind(name, PromptCache("500MB", DiskStore(tmp_path))), history)
    assert second.usage.cached == first.usage.prompt + first.usage.generated
    assert store.check() == []


@pytest.mark.parametrize("name", ["mamba2", "jamba", "gemma3_text"])
def test_where_two_prompts_part_a_third_one_goes_on(name, engine_of_kind):
    cache = PromptCache("500MB")
    engine = engine_of_kind(name, cache)
    text = "A rather long question that three people ask, and which ends with "
    ask(engine, [SYSTEM, Message("user", text + "X")])
    second = ask(engine, [SYSTEM, Message("user", text + "Y")])
    third = ask(engine, [SYSTEM, Message("user", text + "Z")])
    assert third.usage.cached >= second.usage.cached + len(text.split())
    assert third.usage.prefilled < 40
    assert cache.check() == []


@pytest.mark.parametrize("name", KINDS)
def test_answers_together_are_those_alone(name, engine_of_kind):
    questions = ["One?", "And what comes after one, in the long run?", "Three, please?", "4?"]
    asked = [[SYSTEM, Message("user", text)] for text in questions]
    alone = [ask(engine_of_kind(name, PromptCache("1MB")), history).ids for history in asked]
    cache = PromptCache("500MB")
    engine = engine_of_kind(name, cache)
    with ThreadPoolExecutor(len(asked)) as threads:
        together = list(threads.map(lambda history: ask(engine, history), asked))
    assert [event.ids for event in together] == alone
    assert sum(event.usage.cached == 0 for event in together) == 1
    assert cache.check() == []
