"""Odd schemas, models and biases through the whole engine: taken, told, or refused by name."""

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llm_mlx_promptcache.chat.grammar import tool_grammar
from llm_mlx_promptcache.chat.hand_forms import GENERIC
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.checking import misfits_of
from llm_mlx_promptcache.engine.constraint import Constraint, ConstraintError, Matchers
from llm_mlx_promptcache.engine.events import Finished, Misfit
from llm_mlx_promptcache.engine.request import GenerationRequest, Sampling
from llm_mlx_promptcache.models.kv_settings import KVSettings

for _folder in (Path(__file__).parents[1], Path(__file__).parents[1] / "chat"):
    sys.path.append(str(_folder))

from odd_schemas import ODD  # noqa: E402
from real_tokenizers import real_tokenizer  # noqa: E402

ASKED = (Message("user", "Go."),)
UNIQUE = {
    "type": "object",
    "properties": {
        "a": {"type": "array", "items": {"const": 1}, "uniqueItems": True}
        | {"minItems": 2, "maxItems": 3}
    },
    "required": ["a"],
}


def tool(name, parameters):
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def answer_of(engine, **asked):
    more = {"max_tokens": 200, "on_disk": False, **asked}
    (*_, last) = engine.generate(GenerationRequest(ASKED, **more))
    assert isinstance(last, Finished)
    return last


def test_law_13_odd_tools_refuse_no_request_and_are_told(engine_of, tiny_llama):
    engine = engine_of(tiny_llama(context=40_000))
    # What no value that ends would satisfy is refused, tools or not: test_schema_instances.
    refused = ("no schema", "itself without an end")
    odd = [tool(f"odd{at}", ODD[name][0]) for at, name in enumerate(ODD) if name not in refused]
    # Where no call must come nothing is held, and so nothing is left out.
    free = answer_of(engine, tools=tuple(odd), max_tokens=8)
    assert not any("schema" in note for note in free.notes)
    answer = answer_of(engine, tools=tuple(odd), tool_choice="any", max_calls=1, max_tokens=8)
    assert any("uniqueItems at /properties/a" in note for note in answer.notes)
    called = answer_of(engine, tools=(tool("odd", UNIQUE),), tool="odd")
    assert any("the tool odd" in note for note in called.notes)


def test_a_document_that_breaks_what_no_grammar_holds_says_so(engine_of, tiny_llama):
    answer = answer_of(engine_of(tiny_llama()), schema=UNIQUE)
    assert not answer.cut
    assert len(json.loads(answer.text)["a"]) >= 2
    assert answer.misfits == (Misfit("", "uniqueItems at /properties/a"),)
    assert len(answer.notes) == 1


def test_a_call_that_breaks_what_no_grammar_holds_says_so(engine_of, tiny_llama):
    answer = answer_of(engine_of(tiny_llama()), tools=(tool("odd", UNIQUE),), tool="odd")
    (call,) = answer.tool_calls
    assert answer.misfits == (Misfit(call.id, "uniqueItems at /properties/a"),)


def test_what_a_grammar_holds_is_not_checked(engine_of, tiny_llama, monkeypatch):
    def checked(*_):
        raise AssertionError("checked for nothing")

    monkeypatch.setattr("llm_mlx_promptcache.engine.checking.misfits", checked)
    held = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    engine = engine_of(tiny_llama())
    assert answer_of(engine, schema=held).misfits == ()
    assert answer_of(engine, tools=(tool("held", held),), tool="held").misfits == ()


@pytest.mark.parametrize(("head", "size"), [(64, 64), (96, 32)])
def test_kv_bits_find_the_groups_that_fit(engine_of, tiny_llama, head, size):
    folder = tiny_llama()
    _with_heads_of(folder, head)
    engine = engine_of(folder)
    own = answer_of(engine, kv=KVSettings(8))
    named = answer_of(engine, kv=KVSettings(8, size))
    assert own.ids == named.ids
    assert own.namespace == named.namespace


def test_kv_bits_that_go_with_no_groups_are_refused_with_what_llm_has(engine_of, tiny_llama):
    folder = tiny_llama()
    _with_heads_of(folder, 80)
    engine = engine_of(folder)
    with pytest.raises(ValueError, match="no groups of 64 or 32; leave kv_bits out"):
        answer_of(engine, kv=KVSettings(8))
    with pytest.raises(ValueError, match="leave kv_group_size out, or kv_bits"):
        answer_of(engine, kv=KVSettings(8, 128))


def _with_heads_of(folder, size):
    """Weights of another width in place of the folder's own."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models.llama import Model, ModelArgs

    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 2 * size, "head_dim": size, "num_attention_heads": 2}
    config |= {"num_key_value_heads": 2, "tie_word_embeddings": True}
    mx.random.seed(3)
    weights = dict(tree_flatten(Model(ModelArgs.from_dict(config)).parameters()))
    for file in folder.glob("*.safetensors"):
        file.unlink()
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))


def test_a_text_config_that_is_null_is_none(engine_of, tiny_llama):
    folder = tiny_llama()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "text_config": None}))
    assert answer_of(engine_of(folder)).ids


@pytest.mark.parametrize("amount", [float("nan"), float("inf"), 1e39, "3"])
def test_a_bias_that_is_no_number_is_refused_by_its_field(amount):
    with pytest.raises(ValueError, match=r"^logit_bias is .* for token 5"):
        Sampling(logit_bias=((5, amount),))


@pytest.mark.parametrize("limit", [1, 20])
def test_a_bias_that_leaves_a_grammar_nothing_says_so(engine_of, tiny_llama, limit):
    folder = tiny_llama()
    engine = engine_of(folder)
    words = json.loads((folder / "config.json").read_text())["vocab_size"]
    sampling = Sampling(logit_bias=tuple((at, -float("inf")) for at in range(words)))
    schema = {"enum": [True, False, None, 7]}
    asked = GenerationRequest(
        ASKED, max_tokens=limit, on_disk=False, schema=schema, sampling=sampling
    )
    with pytest.raises(ConstraintError, match="forbid less with logit_bias"):
        list(engine.generate(asked))


@pytest.mark.parametrize("family", ["qwen3", "llama3_1"])
def test_odd_tools_are_called_with_real_tokenizers(family):
    """Drawn with a seed from what the mask allows: each call is whole, and of its tool."""
    from llguidance.hf import from_tokenizer
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(real_tokenizer(family)))
    matchers = Matchers(from_tokenizer(tokenizer))
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    random_ = random.Random(seed)
    marks = tokenizer.get_added_vocab()
    special = [(mark, marks[mark]) for mark in ("<tool_call>", "</tool_call>") if mark in marks]
    form = replace(GENERIC, special=tuple(special))
    for name, (parameters, fits, _) in ODD.items():
        grammar = tool_grammar([tool("odd", parameters)], "odd", form)
        said = f'<tool_call>\n{{"name": "odd", "arguments": {json.dumps(fits)}}}\n</tool_call>'
        constraint = Constraint(matchers, grammar, len(tokenizer))
        for token in tokenizer.encode(said, add_special_tokens=False):
            constraint.consume(token)
        assert constraint.complete, name
        drawn = Constraint(matchers, grammar, len(tokenizer))
        for _ in range(12):
            bits = drawn._matcher.bits()
            allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
            assert len(allowed), name
            drawn.consume(int(random_.choice(allowed)))
            if drawn.finished:
                break


def test_checking_needs_no_grammar():
    from llm_mlx_promptcache.chat.answer_parts import Answer
    from llm_mlx_promptcache.chat.generated import ToolCall

    request = GenerationRequest(ASKED, tools=(tool("odd", UNIQUE),))
    answer = Answer("", "", (ToolCall("odd", {"a": [1, 1]}, "c1"), ToolCall("else", {}, "c2")))
    assert misfits_of(answer, request, None) == (Misfit("c1", "uniqueItems at /properties/a"),)
