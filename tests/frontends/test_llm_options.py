"""llm's options -> the engine's request; what shaped a prompt holds on in its conversation."""

import re

import llm
import pytest
from llm.cli import load_conversation

from llm_mlx_promptcache.llm_adapter.models import MlxCached
from llm_mlx_promptcache.llm_adapter.options import MlxCachedOptions, checked_options
from llm_mlx_promptcache.models.kv_settings import KVSettings


def shown(request):
    """A request's messages, as pairs of role and text."""
    return [(message.role, message.content) for message in request.messages]


def alpha() -> str:
    """Say a."""
    return "a"


def test_options_reach_the_engine(scripted):
    said = {
        "temperature": "0.5",
        "top_p": "0.9",
        "top_k": "40",
        "min_p": "0.05",
        "min_tokens_to_keep": "3",
        "xtc_probability": "0.1",
        "xtc_threshold": "0.2",
        "repetition_penalty": "1.1",
        "presence_penalty": "0.3",
        "frequency_penalty": "0.4",
        "seed": "0",
        "max_tokens": "7",
        "unlimited": "false",
        "prefill": "Well",
        "drafts": "false",
        "stop": '["a", "b"]',
        "thinking": "false",
        "json_object": "0",
        "tool_choice": "none",
        "kv_bits": "8",
        "cache": "false",
        "cache_salt": "mine",
    }
    MlxCached().prompt("Go.", tools=[alpha], **said).text()
    (request,) = scripted.requests
    sampling = request.sampling
    for name in list(said)[:11]:
        assert getattr(sampling, name) == float(said[name])
    assert (request.max_tokens, request.stop, request.thinking) == (7, ("a", "b"), False)
    assert (request.json_object, request.kv) == (False, KVSettings(8))
    assert request.tool_choice == "none"
    assert (request.use_cache, request.cache_salt) == (False, "mine")
    assert shown(request) == [("user", "Go."), ("assistant", "Well")]
    assert request.continue_final
    assert set(MlxCachedOptions.model_fields) == set(said)


def test_without_options_the_engine_decides(scripted):
    from llm_mlx_promptcache.engine.request import GenerationRequest

    MlxCached().prompt("Go.").text()
    (request,) = scripted.requests
    assert request == GenerationRequest(request.messages, if_possible=("thinking",))
    assert request.max_tokens == 8192


def test_an_option_of_ones_own_default_is_not_overruled_by_another_option():
    # llm lays `llm models options set` only over what Options leaves None.
    assert [value for _, value in MlxCachedOptions(max_tokens="3") if value is not None] == [3]


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        ("x", ["x"]),
        ("[END]", ["[END]"]),
        ("[", ["["]),
        ("['a']", ["['a']"]),
        ('["a", "b"]', ["a", "b"]),
        ("5", ["5"]),
        (["a"], ["a"]),
    ],
)
def test_stop_is_a_string_or_a_list_of_them(said, taken):
    assert MlxCachedOptions(stop=said).stop == taken


def test_tool_choice_may_be_openais_object_as_servers_hand_it_on(scripted):
    function = {"type": "function", "function": {"name": "alpha"}}
    MlxCached().prompt("Go.", tools=[alpha], tool_choice=function).text()
    (request,) = scripted.requests
    assert (request.tool_choice, request.tool) == ("any", "alpha")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop", "[1]"),
        ("stop", '["a", ""]'),
        ("stop", ""),
        ("kv_bits", "5"),
        ("tool_choice", ""),
        ("tool_choice", {"type": "function", "function": {}}),
        ("tool_choice", {"type": "function", "function": "alpha"}),
        ("tool_choice", {"type": "allowed_tools"}),
        ("top_p", "2"),
        ("temperature", "nan"),
        ("seed", "x"),
        ("thinking", "perhaps"),
    ],
)
def test_a_bad_value_is_an_error_of_that_option(name, value):
    from llm.cli import render_errors
    from pydantic import ValidationError

    with pytest.raises(ValidationError) as caught:
        MlxCachedOptions(**{name: value})
    # llm's own command prints it so, and fails on errors that are inside a list.
    assert render_errors(caught.value.errors()).startswith(name)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("stop", '["a"', "it begins as a JSON list and is none (Expecting ',' delimiter)"),
        ("stop", '[ "a", b]', "it begins as a JSON list and is none (Expecting value)"),
        ("temperature", "nan", "it is nan, and has to be a finite number"),
        ("presence_penalty", "-inf", "it is -inf, and has to be a finite number"),
    ],
)
def test_what_is_wrong_with_a_value_is_said_in_words(name, value, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        checked_options({name: value})


def test_what_shaped_a_prompt_holds_on_until_it_is_said_otherwise(scripted, logged):
    def go_on(**options):
        conversation = load_conversation(None, database=logged.path)
        conversation.model = MlxCached()
        logged.log(conversation.prompt("More.", **options))
        return scripted.requests[-1]

    options = {"thinking": True, "kv_bits": 4, "cache_salt": "n", "temperature": 1.0}
    logged.log(MlxCached().conversation().prompt("Go.", **options))
    for request in (go_on(), go_on()):
        assert (request.thinking, request.kv, request.cache_salt) == (True, KVSettings(4), "n")
        assert request.sampling.temperature == 0
    changed = go_on(thinking=False, kv_bits=0, cache_salt="")
    assert (changed.thinking, changed.kv, changed.cache_salt) == (False, None, "")
    assert go_on().thinking is False
    assert go_on().kv is None


def test_what_shaped_another_models_prompt_does_not(scripted):
    first = MlxCached("small", "/small").prompt("Go.", thinking=True, kv_bits=4)
    first.text()
    MlxCached().prompt("More.", messages=[llm.user("Go."), *first.messages()]).text()
    assert (scripted.requests[1].thinking, scripted.requests[1].kv) == (None, None)


def test_a_conversation_keeps_its_salt_with_another_model_of_ours(scripted):
    def go_on(model, history, **options):
        response = model.prompt("More.", messages=history, **options)
        response.text()
        return [*history, *response.messages(), llm.user("More.")]

    small = MlxCached("small", "/small")
    history = go_on(small, [llm.user("Go.")], cache_salt="n", thinking=True)
    history = go_on(MlxCached(), history)
    history = go_on(MlxCached(), history, cache_salt="")
    go_on(small, history)
    told = [(request.cache_salt, request.thinking) for request in scripted.requests]
    assert told == [("n", True), ("n", None), ("", None), ("", True)]
