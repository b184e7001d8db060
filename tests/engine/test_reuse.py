"""Prefilled divided by new is 1.00, to the token, whatever conversations do (docs/reuse.md)."""

import gc

import conversations
import crowds
import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.llama import Model, ModelArgs

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.identity import Identity
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.engine import Engine
from llm_mlx_promptcache.engine.one_machine import scheduler_here
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.models.chat_tokenizer import TemplateTokenizer

ALL = [*conversations.SCRIPTS, *conversations.THINKING_SCRIPTS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    write = conversations.write_model
    return {thinks: str(write(tmp_path_factory.mktemp("model"), thinks)) for thinks in (0, 1)}


class Process:
    """An engine with a cache of its own over a store that outlives it."""

    def __init__(self, *place):
        self._place = place
        self._engine = conversations.engine_over(*place)

    def ask(self, history, wanted):
        return conversations.answer(self._engine, history, wanted)

    def restart(self):
        self.close()
        self._engine = conversations.engine_over(*self._place)

    def close(self):
        self._engine.close()


# Each script over each kind; every other of them through restarts, and in the soak the other way.
EACH = [
    pytest.param(
        script,
        kind,
        restarts,
        id=f"{script.name}{', thinking' * script.thinking}-{kind}{'-restarts' * restarts}",
        marks=[pytest.mark.soak] * ((number + place) % 2 != restarts),
    )
    for number, script in enumerate(ALL)
    for place, kind in enumerate(conversations.KINDS)
    for restarts in (False, True)
]


@pytest.mark.parametrize(("script", "kind", "restarts"), EACH)
def test_prefilled_is_what_is_new(folders, tmp_path, script, kind, restarts):
    folder = folders[script.thinking]
    process = Process(folder, kind, tmp_path)
    tokenizer = TemplateTokenizer(conversations.load_model(folder).tokenizer)
    played = conversations.play(
        script,
        process.ask,
        tokenizer,
        cuttable=kind == "rows",
        restart=process.restart if restarts else None,
    )
    process.close()
    assert [one.prefilled for one in played] == [one.new for one in played]
    assert all((one.reasoning > 0) == script.thinking for one in played)
    assert DiskStore(tmp_path).check() == []


def test_the_scripts_answers_are_not_what_rendering_their_text_gives(folders, tmp_path):
    process = Process(folders[False], "rows", tmp_path)
    tokenizer = TemplateTokenizer(conversations.load_model(folders[False]).tokenizer)
    for script in (conversations.SCRIPTS[0], conversations.SCRIPTS[2]):
        played = conversations.play(script, process.ask, tokenizer, cuttable=True)
        drifted = [one.drifted for one in played]
        assert sum(drifted) > len(drifted) / 2, (script.name, drifted)
    process.close()


@pytest.mark.parametrize("kind", conversations.KINDS)
def test_eight_that_ask_together_compute_their_prefix_once(folders, tmp_path, kind):
    folder = folders[False]
    tokenizer = TemplateTokenizer(conversations.load_model(folder).tokenizer)
    asked = crowds.crowd(tokenizer, 8, prefix=1000)
    engine = conversations.engine_over(folder, kind, tmp_path)
    ends = crowds.together(engine, [GenerationRequest(messages, 8) for messages in asked])
    engine.close()
    prompts = [
        conversations.render(messages, tokenizer, fingerprint="any").ids for messages in asked
    ]
    shared = min(conversations.common(prompts[0], other) for other in prompts[1:])
    assert shared >= 1000
    new = shared + sum(len(ids) - shared for ids in prompts)
    assert sum(end.usage.prefilled for end in ends) == new
    assert DiskStore(tmp_path).check() == []


def test_one_turn_on_a_long_conversation_is_held_once(folders, tmp_path):
    tokenizer = TemplateTokenizer(conversations.load_model(folders[False]).tokenizer)
    [messages] = crowds.crowd(tokenizer, 1, prefix=4000)
    made = []

    def begin(_):
        loaded = conversations.load(folders[False], "")
        made.append(conversations.loaded_as(loaded, wide_rows(loaded.config)))
        return scheduler_here(
            made[0], Identity("wide", "wide"), PromptCache("1GB", DiskStore(tmp_path))
        )

    engine = Engine(begin)
    first = crowds.one(engine, GenerationRequest(messages, 20))
    said = Message("assistant", first.text, first.generated())
    cached = first.usage.prompt + first.usage.generated
    own = cached * sum(head.nbytes for head in one_row(made[0].model))
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    last = crowds.one(engine, GenerationRequest((*messages, said, Message("user", "And?")), 20))
    highest = mx.get_peak_memory()
    engine.close()
    assert last.usage.cached == cached
    assert (highest - before + own) / own < 1.25


def wide_rows(config):
    """A llama whose rows are large beside all else that it computes with."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 8, "intermediate_size": 64, "head_dim": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "rms_norm_eps": 1e-5}
    model = Model(ModelArgs("llama", vocab_size=config["vocab_size"], **sizes, **heads))
    mx.eval(model.parameters())
    return model


def one_row(model):
    layers = make_prompt_cache(model)
    mx.eval(model(mx.array([[0]]), cache=layers))
    return [array[..., :1, :] for layer in layers for array in (layer.keys, layer.values)]
