"""Tools, schemas, thinking and log probabilities through the engine, with a random model."""

import json
import math

import pytest
from pauses import replied
from readers import MAGIC

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.events import (
    CallArguments,
    CallName,
    CutShort,
    Finished,
    ReasoningDelta,
    TextDelta,
)
from llm_mlx_promptcache.engine.request import GenerationRequest, Sampling
from llm_mlx_promptcache.models.kv_settings import KVSettings

OTHER = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look somewhere.",
        "parameters": {
            "type": "object",
            "properties": {"where": {"enum": ["north", "south"]}},
            "required": ["where"],
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}
ASK = Message("user", "What is north?")


def events_of(engine, messages, **more):
    *events, last = engine.generate(
        GenerationRequest(tuple(messages), **{"max_tokens": 300, **more})
    )
    assert isinstance(last, Finished)
    return events, last


def ask(engine, messages, **more):
    return events_of(engine, messages, **more)[1]


def loop(engines, steps, messages, calls=1):
    """A tool loop: each step's usage, checked to prefill what is new; engines take turns."""
    history, path = list(messages), 0
    for step in range(steps):
        asked = {"tools": (MAGIC, OTHER), "tool_choice": "any", "max_calls": calls}
        event = ask(engines(step), history, **asked)
        assert event.usage.cached == path
        assert event.reason == "tool_calls"
        path = event.usage.prompt + event.usage.generated
        history.append(replied(event))
        results = [f"result {step} of {call.name}" for call in event.tool_calls]
        history += [
            Message("tool", text, tool_call_id=call.id)
            for text, call in zip(results, event.tool_calls, strict=True)
        ]


@pytest.mark.parametrize("calls", [1, 3])
def test_each_step_of_a_tool_loop_prefills_only_what_is_new(tiny_llama, engine_of, cache, calls):
    engine = engine_of(tiny_llama(context=8192), cache)
    loop(lambda step: engine, 10, [Message("system", "Be short."), ASK], calls)


def test_a_tool_loop_goes_on_after_a_restart_between_any_two_steps(tiny_llama, engine_of, tmp_path):
    made = []

    def fresh(step):
        if made:
            made[-1].close()
        cache = PromptCache("100MB", disk=DiskStore(tmp_path))
        made.append(engine_of(tiny_llama(context=8192), cache))
        return made[-1]

    loop(fresh, 4, [ASK])
    made[-1].close()
    assert DiskStore(tmp_path).check() == []


def test_calls_come_piece_by_piece_and_whole_at_the_end(tiny_llama, engine_of):
    engine = engine_of(tiny_llama(context=4096))
    events, last = events_of(engine, [ASK], tools=(MAGIC,), tool="magic")
    assert last.reason == "tool_calls"
    [call] = last.tool_calls
    [name] = [event for event in events if isinstance(event, CallName)]
    assert (name.id, name.name) == (call.id, call.name) == (call.id, "magic")
    text = "".join(event.text for event in events if isinstance(event, CallArguments))
    assert json.loads(text) == call.arguments
    assert 0 <= call.arguments["input"] <= 99
    assert last.text == ""


def test_tools_that_must_not_be_called_still_stand_in_the_prompt(tiny_llama, engine_of, cache):
    engine = engine_of(tiny_llama(context=4096), cache)
    called = ask(engine, [ASK], tools=(MAGIC,), tool_choice="any")
    silent = ask(engine, [ASK], tools=(MAGIC,), tool_choice="none", max_tokens=5)
    assert not silent.tool_calls
    assert silent.usage.prompt == called.usage.prompt
    assert silent.usage.prefilled == 1


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_an_answer_held_to_a_schema_is_a_document_of_it(tiny_llama, engine_of, seed):
    sampling = Sampling(temperature=0 if seed is None else 1.5, seed=seed)
    last = ask(engine_of(tiny_llama()), [ASK], schema=SCHEMA, sampling=sampling)
    document = json.loads(last.whole().text)
    assert set(document) == {"name", "old"}
    assert type(document["old"]) is bool
    assert last.reason == "stop"


def test_with_tools_a_schema_leaves_the_choice(tiny_llama, engine_of):
    engine = engine_of(tiny_llama(context=4096))
    kinds = set()
    for seed in range(12):
        sampling = Sampling(temperature=3, seed=seed)
        last = ask(engine, [ASK], tools=(MAGIC,), schema=SCHEMA, sampling=sampling, max_calls=1)
        last.whole()
        kinds.add(last.reason)
        if not last.tool_calls:
            assert set(json.loads(last.text)) == {"name", "old"}
    assert kinds == {"tool_calls", "stop"}


@pytest.mark.parametrize("asked", [{"schema": SCHEMA}, {"tools": (MAGIC,), "tool": "magic"}])
def test_what_is_cut_is_no_document_and_no_call(tiny_llama, engine_of, cache, asked):
    engine = engine_of(tiny_llama(context=4096), cache)
    last = ask(engine, [ASK], max_tokens=7, **asked)
    assert last.reason == "length"
    assert not last.tool_calls
    assert "<tool" not in last.text
    with pytest.raises(CutShort, match="raise max_tokens"):
        last.whole()
    assert ask(engine, [ASK], max_tokens=7, **asked).usage.prefilled == 1


def test_a_pattern_holds_the_answer(tiny_llama, engine_of):
    last = ask(engine_of(tiny_llama()), [ASK], regex="(yes|no), [a-c]{3}")
    assert last.whole().text.split(", ")[0] in ("yes", "no")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"schema": {"type": "nothing"}}, "schema"),
        ({"schema": {"type": "integer", "minimum": 2, "maximum": 1}}, "schema"),
        ({"regex": "(?=a)b"}, "regex"),
        ({"tools": (MAGIC,), "tool": "other"}, "tool_choice is 'other'"),
        ({"tools": ({"type": "function"},), "tool_choice": "any"}, "tools"),
        ({"kv": KVSettings(8, 64)}, "kv"),
        ({"sampling": Sampling(logit_bias=((-1, 1.0),))}, "logit_bias names token -1; .* 0 to "),
        ({"sampling": Sampling(logit_bias=((1 << 20, 1.0),))}, "logit_bias names token 1048576"),
        ({"template_arguments": {"tools": []}}, "template_arguments"),
    ],
)
def test_what_can_not_be_asked_is_refused_by_its_field(tiny_llama, engine_of, cache, asked, words):
    engine = engine_of(tiny_llama(), cache)
    with pytest.raises(ValueError, match=words) as caught:
        ask(engine, [ASK], **asked)
    assert "\n" not in str(caught.value)
    assert ask(engine, [ASK], max_tokens=4).usage.generated == 4


def test_log_probabilities_are_those_of_the_model(tiny_llama, engine_of):
    last = ask(engine_of(tiny_llama()), [ASK], logprobs=3, max_tokens=6)
    assert [one.chosen.id for one in last.logprobs] == list(last.ids)
    for one in last.logprobs:
        assert one.chosen == one.top[0]  # greedy
        assert [other.logprob for other in one.top] == sorted(
            (other.logprob for other in one.top), reverse=True
        )
        assert 0 < sum(math.exp(other.logprob) for other in one.top) <= 1 + 1e-5


THINKING = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content.split('</think>')[-1].lstrip() }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def test_reasoning_is_told_apart_and_counted(tiny_llama, engine_of):
    folder = tiny_llama(context=4096, special=("<think>", "</think>"))
    set_template(folder, THINKING)
    events, last = events_of(engine_of(folder), [ASK], max_tokens=12)
    assert not any(isinstance(event, TextDelta) for event in events)
    thought = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    assert thought == last.reasoning != ""
    assert last.usage.reasoning == last.usage.generated


def set_template(folder, template):
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "chat_template": template}))


@pytest.mark.parametrize("start", [0, 25, 40, 1000])
def test_quantised_rows_go_on_from_the_cache(tiny_llama, engine_of, cache, start):
    engine = engine_of(tiny_llama(heads=2), cache)
    kv = KVSettings(8, 32, start)
    history, path = [Message("system", "Keep a lighthouse."), ASK], 0
    for _ in range(3):
        event = ask(engine, history, kv=kv, max_tokens=12)
        cold = ask(engine, history, kv=kv, max_tokens=12, use_cache=False)
        assert event.ids == cold.ids
        assert event.usage.cached == path
        path = event.usage.prompt + event.usage.generated
        history += [replied(event), Message("user", "And then?")]
    plain = ask(engine, history, max_tokens=2)
    assert plain.usage.cached <= max(start, 0)


def test_where_rows_are_quantised_a_shorter_prompt_is_not(tiny_llama, engine_of, cache):
    engine = engine_of(tiny_llama(heads=2), cache)
    kv = KVSettings(4, 32, 100)
    system = Message("system", "Keep a lighthouse.")
    ask(engine, [system, Message("user", "of lamps and wicks, " * 20)], kv=kv, max_tokens=4)
    asked = {"kv": kv, "max_tokens": 8, "logprobs": 1}
    warm = ask(engine, [system, Message("user", "of lamps?")], **asked)
    cold = ask(engine, [system, Message("user", "of lamps?")], **asked, use_cache=False)
    assert 0 < warm.usage.cached < warm.usage.prompt < 100
    assert warm.ids == cold.ids
    assert [one.chosen.logprob for one in warm.logprobs] == pytest.approx(
        [one.chosen.logprob for one in cold.logprobs], abs=1e-4
    )


def test_what_an_answer_quantises_keeps_the_tiers_of_its_messages(tiny_llama, engine_of, tmp_path):
    cache = PromptCache("100MB", disk=DiskStore(tmp_path))  # so prompts are kept before answers
    engine = engine_of(tiny_llama(heads=2), cache)
    history = [Message("system", "Keep a lighthouse."), ASK]
    plain = ask(engine, history, max_tokens=1)
    before = cache.stats()["memory"]["tiers"]["system"]["tokens"]
    start = plain.usage.prompt + 4  # crossed in the middle of the answer
    ask(engine, history, kv=KVSettings(8, 32, start), max_tokens=12)
    assert cache.stats()["memory"]["tiers"]["system"]["tokens"] == 2 * before > 0
    assert cache.check() == []


def test_warm_prefills_and_pins_what_every_prompt_shares(tiny_llama, engine_of):
    cache = PromptCache("100MB")
    engine = engine_of(tiny_llama(context=4096), cache)
    system = Message("system", "You keep a lighthouse. " * 5)
    warmed = engine.warm([system], tools=(MAGIC,))
    assert (warmed.ids, warmed.text, warmed.usage.generated) == ((), "", 0)
    first = ask(engine, [system, ASK], max_tokens=3, tools=(MAGIC,))
    assert first.usage.cached == warmed.usage.prompt == warmed.usage.prefilled
    cache.trim_to(memory_bytes=0)
    again = ask(engine, [system, ASK], max_tokens=3, tools=(MAGIC,))
    assert again.usage.cached == first.usage.cached
    ask(engine, [Message("system", "Something else.")], warm=True)
    cache.trim_to(memory_bytes=0)
    assert ask(engine, [Message("system", "Something else."), ASK], max_tokens=3).usage.cached < 5
