"""Forms of calls are learned from templates, whatever their marks are called."""

import random
import re

import form_cases
import pytest

from llm_mlx_promptcache.chat.form_learning import learned_form
from llm_mlx_promptcache.chat.form_probes import Probe
from llm_mlx_promptcache.chat.form_reading import CallReader
from llm_mlx_promptcache.chat.forms import CallLayout, Hole, NoForm, Reasoning, marks_in
from llm_mlx_promptcache.chat.generated import ToolCall
from llm_mlx_promptcache.chat.hand_forms import GENERIC, hand_form
from llm_mlx_promptcache.chat.reasoning_learning import listed_reasoning, shown_reasoning

SAMPLE = 26


@pytest.fixture(scope="module")
def templates():
    return {template.name: template for template in form_cases.templates()}


def learned(template):
    form_cases.compiled(template)
    return form_cases.learned(template)


@pytest.mark.parametrize("case", form_cases.CASES)
def test_a_sample_of_real_templates_is_read_back(templates, case):
    number = list(form_cases.CASES).index(case)
    wrong, count = {}, 0
    for name in list(templates)[number % SAMPLE :: SAMPLE]:
        form, _, _ = learned(templates[name])
        if form is not None:
            count += 1
            wrong[name] = form_cases.check(templates[name], form, case)
    assert count > 8
    refused = [cause for cause in wrong.values() if cause.startswith("refused")]
    assert len(refused) <= 1
    assert not {n: c for n, c in wrong.items() if c and c != "single" and c not in refused}


@pytest.mark.soak
def test_all_real_templates_are_read_back_but_for_those_that_are_listed(templates):
    exact = 0
    for template in templates.values():
        form, _, renderings = learned(template)
        assert renderings <= 40
        if form is not None:
            causes = {form_cases.check(template, form, case) for case in form_cases.CASES}
            exact += causes <= {"", "single"}
    assert exact >= form_cases.LEAST_EXACT


def test_a_sample_is_never_read_worse_than_by_mlx_lm_s_parsers(templates):
    count, worse = form_cases.readings(list(templates.values())[11::SAMPLE])
    assert count > 100
    assert not worse


@pytest.mark.soak
def test_no_real_template_is_read_worse_than_by_mlx_lm_s_parsers(templates):
    count, worse = form_cases.readings(templates.values())
    assert count >= form_cases.LEAST_READINGS
    assert not worse


@pytest.mark.parametrize(
    ("name", "layout", "call"),
    [
        (
            "Qwen-Qwen3-0.6B",
            CallLayout.OBJECT,
            (
                '<tool_call>\n{"name": "',
                *(Hole.NAME, '", "arguments": ', Hole.ARGUMENTS),
                "}\n</tool_call>",
            ),
        ),
        (
            "Qwen-Qwen3-Coder-30B-A3B-Instruct",
            CallLayout.TAGS,
            (
                "<tool_call>\n<function=",
                *(Hole.NAME, ">\n", Hole.ARGUMENTS),
                "</function>\n</tool_call>",
            ),
        ),
        (
            "moonshotai-Kimi-K2-Instruct-0905",
            CallLayout.HEADER,
            (
                "<|tool_call_begin|>functions.",
                *(Hole.NAME, ":", Hole.COUNT, "<|tool_call_argument_begin|>", Hole.ARGUMENTS),
                "<|tool_call_end|>",
            ),
        ),
        (
            "google-gemma-4-E4B-it",
            CallLayout.INLINE,
            ("<|tool_call>call:", Hole.NAME, "{", Hole.ARGUMENTS, "}<tool_call|>"),
        ),
    ],
)
def test_what_is_learned_is_what_the_template_writes(templates, name, layout, call):
    form, _, _ = learned(templates[name])
    assert (form.layout, form.call) == (layout, call)


def test_why_there_is_no_form_is_told(templates):
    _, reason, _ = learned(templates["HuggingFaceTB-SmolLM2-135M-Instruct"])
    assert reason == "calls are not shown"

    def refuses(messages, **arguments):
        raise ValueError("no")

    with pytest.raises(NoForm, match="calls are refused"):
        learned_form(Probe(refuses))


KEYS = {
    **{"name": "tytle", "tool_name": "twytle"},
    **{"arguments": "wishes", "parameters": "wants", "id": "tag"},
}


def renamed(source, marks, random):
    """A template in other words: letters of marks, keys of objects, and spaces round colons."""
    words = {}
    for mark in sorted(marks, key=len, reverse=True):
        inner = re.sub("[a-zA-Z]{3,}", lambda found: word(found[0], words, random), mark)
        source = source.replace(mark, inner)
        if mark[0] == "<":
            source = source.replace(f"</{mark[1:]}", f"</{inner[1:]}")
    for key, other in KEYS.items():
        for quote in ('"', '\\"'):
            source = source.replace(f"{quote}{key}{quote}: ", f"{quote}{other}{quote} :  ")
            source = source.replace(f"{quote}{key}{quote}:", f"{quote}{other}{quote}: ")
    return source


def word(text, words, random):
    """Other letters for a word, always the same; capitals stay capitals."""
    if text not in words:
        letters = [random.choice("bcdfghjklmnpqrstvwxz") for _ in text]
        words[text] = "".join(
            letter.upper() if old.isupper() else letter
            for old, letter in zip(text, letters, strict=True)
        )
    return words[text]


class Renamed:
    """A template under another name, with other marks and keys."""

    def __init__(self, template, source):
        self.name, self.source = "nobody-knows", source
        self._own = type(template)(self.name, source)

    def render(self, *arguments, **named):
        return self._own.render(*arguments, **named)


def test_templates_with_other_marks_keys_and_spaces_are_learned_again(templates):
    """No mark, key or name is known beforehand: 50 templates in words that nobody has seen."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chosen = random.Random(seed)
    pairs, wrong = [], {}
    for name in chosen.sample(sorted(templates), len(templates)):
        if len(pairs) == 50:
            break
        before, _, _ = learned(templates[name])
        if before is None or before.input.named_ids or not before.openings:
            continue
        marks = {m for one in before.literals for m in marks_in(one) if m[0] in "<[" and len(m) > 4}
        template = Renamed(templates[name], renamed(templates[name].source, marks, chosen))
        form, reason, _ = learned(template)
        if form is None:
            wrong[name] = reason
            continue
        if not set(form.openings) & set(before.openings):  # some are put together out of pieces
            pairs.append((before, form))
        for case in ("single", "quotes", "outer spaces", "parallel", "nested", "empty arguments"):
            cause = form_cases.check(template, form, case)
            was = form_cases.check(templates[name], before, case)
            if cause != was and not (cause and was):
                wrong[name, case] = cause
    assert not wrong, (seed, wrong)
    assert len(pairs) == 50
    objects = [(before, form) for before, form in pairs if form.layout is CallLayout.OBJECT]
    keys = [form.keys for before, form in objects if form.keys != before.keys]
    assert len(keys) > len(objects) / 4
    written = {one.name[-1] for one in keys} | {one.arguments[-1] for one in keys}
    assert written <= {*KEYS.values(), *KEYS}, (seed, written)


SWITCH = "enable_thinking"
APRIEL = ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]")


@pytest.mark.parametrize(
    ("name", "marks"),
    [
        ("Qwen-Qwen3-0.6B", ("<think>", "</think>")),
        ("mistralai-Ministral-3-3B-Reasoning-2512", ("[THINK]", "[/THINK]")),
        ("ByteDance-Seed-OSS", ("<seed:think>", "</seed:think>")),
        ("upstage-Solar-Open2-250B", ("<|think:start|>", "<|think:end|>")),
        ("deepseek-ai-DeepSeek-V4", ("<think>", "</think>")),
        # The prompt ends with the first, the second is cut out of earlier answers, and the third
        # and fourth are told to the model in words.
        ("LGAI-EXAONE-EXAONE-Deep-7.8B", ("<thought>", "</thought>")),
        ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", ("<think>", "</think>")),
        ("ServiceNow-AI-Apriel-1.5-15b-Thinker", APRIEL),
        ("ServiceNow-AI-Apriel-1.6-15b-Thinker", APRIEL),
        ("Apriel-1.6-15b-Thinker-fixed", APRIEL),
    ],
)
def test_marks_of_reasoning_are_learned(templates, name, marks):
    template = templates[name]

    def apply(messages, *, tools, add_generation_prompt, **arguments):
        return template.render(messages, tools, add_generation_prompt, **arguments)

    assert shown_reasoning(Probe(apply), SWITCH) == Reasoning(*marks)


def test_marks_of_reasoning_that_no_template_shows_are_found_in_the_vocabulary():
    def apply(messages, **arguments):
        return "".join(f"{m['role']}: {m['content']}\n" for m in messages)

    assert shown_reasoning(Probe(apply), SWITCH) is None
    assert listed_reasoning([]) is None
    assert listed_reasoning(["<thought>", "</thought>"]) == Reasoning("<thought>", "</thought>")


@pytest.mark.parametrize(
    ("vocabulary", "text"),
    [
        (["<|tool_call|>"], '<|tool_call|>[{"name": "add_up", "arguments": {"a": 1}}]'),
        (
            ["<|tool_call|>", "<|/tool_call|>"],
            '<|tool_call|>[{"name": "add_up", "arguments": {"a": 1}}]<|/tool_call|>',
        ),
        (["<|python_tag|>"], '<|python_tag|>{"name": "add_up", "parameters": {"a": 1}}'),
        (
            ["<tool_calls>", "</tool_calls>"],
            '<tool_calls>\n{"name": "add_up", "arguments": {"a": 1}}\n</tool_calls>',
        ),
        (["<|tool_call_start|>", "<|tool_call_end|>"], "<|tool_call_start|>[add_up(a=1)]"),
    ],
)
def test_forms_by_hand_are_chosen_by_their_marks(vocabulary, text):
    form = hand_form(None, vocabulary)
    assert form != GENERIC
    reader = CallReader(form, form_cases.TOOLS)
    reader.feed(text)
    [call] = reader.finish(whole=True).calls
    assert isinstance(call, ToolCall)
    assert (call.name, call.arguments) == ("add_up", {"a": 1})


@pytest.mark.parametrize("name", ["Qwen-Qwen3-0.6B", "GLM-4.6", "google-gemma-4-E4B-it"])
def test_a_text_that_was_cut_anywhere_ends_and_is_no_other_call(templates, name):
    form, _, _ = learned(templates[name])
    for case, calls in form_cases.CASES.items():
        tools = form_cases.tools_of(case)
        text = form_cases.answer_text(templates[name], form, calls, tools)
        for end in range(len(text)):
            reader = CallReader(form, tools)
            reader.feed(text[:end])
            read = [(call.name, call.arguments) for call in reader.finish(whole=False).calls]
            assert read in ([], calls[:1], calls), text[:end]
