"""Calls in the forms of models themselves: whole, cut anywhere, and as a grammar makes them."""

import json
import re

import pytest
from parsed_answers import TOOLS, agrees, call, collect, joined

from llm_mlx_promptcache.chat.answer_parser import AnswerParser
from llm_mlx_promptcache.chat.answer_parts import CutShort
from llm_mlx_promptcache.chat.forms import CallLayout, Form, Hole, Tags
from llm_mlx_promptcache.chat.grammar import tool_grammar
from llm_mlx_promptcache.chat.hand_forms import GENERIC, hand_form


def tagged(head, middle, foot, tags, layout=CallLayout.TAGS, **marks):
    return Form(layout, (head, Hole.NAME, middle, Hole.ARGUMENTS, foot), tags=tags, **marks)


CODER = tagged(
    "<tool_call>\n<function=",
    ">\n",
    "</function>\n</tool_call>",
    Tags("<parameter=", ">\n", "\n</parameter>\n", ">\n", "\n</parameter>\n", ""),
    between="\n",
)
GLM = tagged(
    "<tool_call>",
    "",
    "</tool_call>",
    Tags("<arg_key>", "</arg_key><arg_value>", "</arg_value>", "</arg_key><arg_value>",
         "</arg_value>", ""),
)  # fmt: skip
GEMMA = tagged(
    "<|tool_call>call:",
    "{",
    "}<tool_call|>",
    Tags("", ":", "", ':<|"|>', '<|"|>', ","),
    CallLayout.INLINE,
)
MISTRAL = Form(CallLayout.HEADER, ("[TOOL_CALLS]", Hole.NAME, "[ARGS]", Hole.ARGUMENTS))
LISTED = Form(
    CallLayout.OBJECT,
    ('{"name": "', Hole.NAME, '", "arguments": ', Hole.ARGUMENTS, "}"),
    start="[TOOL_CALLS][",
    between=", ",
    end="]",
)
KIMI = hand_form(None, ["<|tool_calls_section_begin|>", "<|tool_call_argument_begin|>"])
PYTHONIC = hand_form(None, ["<|tool_call_start|>", "<|tool_call_end|>"])
BARE = Form(
    CallLayout.OBJECT,
    ('{"name": "', Hole.NAME, '", "arguments": ', Hole.ARGUMENTS, "}"),
    parallel=False,
)
UNQUOTED = Form(
    CallLayout.INLINE,
    (Hole.NAME, "(", Hole.ARGUMENTS, ")"),
    start="[",
    between=", ",
    end="]",
    tags=Tags("", "=", "", "=", "", ", "),
)
OWN = [
    (GENERIC, call("x", days=2)),
    (
        CODER,
        "<tool_call>\n<function=weather>\n<parameter=city>\nx\n</parameter>\n"
        "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>",
    ),
    (
        GLM,
        "<tool_call>weather<arg_key>city</arg_key><arg_value>x</arg_value>"
        "<arg_key>days</arg_key><arg_value>2</arg_value></tool_call>",
    ),
    (MISTRAL, '[TOOL_CALLS]weather[ARGS]{"city": "x", "days": 2}'),
    (LISTED, '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "x", "days": 2}}]'),
    (
        KIMI,
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
        '<|tool_call_argument_begin|>{"city": "x", "days": 2}<|tool_call_end|>'
        "<|tool_calls_section_end|>",
    ),
    (PYTHONIC, '<|tool_call_start|>[weather(city="x", days=2)]<|tool_call_end|>'),
    (GEMMA, '<|tool_call>call:weather{city:<|"|>x<|"|>,days:2}<tool_call|>'),
]


@pytest.mark.parametrize(("form", "text"), OWN)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_model_calls_in_its_own_form(form, text, size):
    parts, answer = collect(f"Well. {text}", form, size=size)
    assert agrees(parts, answer, ids=not form.id) == [("weather", {"city": "x", "days": 2})]
    assert answer.text == "Well."


@pytest.mark.parametrize(("form", "text"), OWN)
def test_cut_anywhere_it_is_no_call(form, text):
    # What closes the call makes it a whole one, whatever was to follow.
    mark = next(iter(form.tail_marks), "")
    whole = text.rindex(mark) + len(mark)
    for end in range(len(form.openings[0]), whole):
        _, answer = collect(text[:end], form, whole=False, size=1000)
        assert (answer.calls, answer.invalid, answer.text) == ((), (), ""), text[:end]
        assert isinstance(answer.cut, CutShort), text[:end]


@pytest.mark.parametrize("text", ['{"name": "weather", "arguments": {"ci', "[{'name': 'weather', "])
def test_a_bare_call_that_was_cut_is_told(text):
    for form in (GENERIC, BARE):
        parts, answer = collect(text, form, whole=False)
        assert isinstance(answer.cut, CutShort)
        assert (agrees(parts, answer), answer.text) == ([], "")
        # Of a document nobody knows that it is cut, and the model may have ended it.
        _, other = collect(text.replace("weather", "Ada"), form, whole=False)
        assert (other.text, other.cut) == (text.replace("weather", "Ada"), None)
    whole = '{"name": "weather", "arguments": {"city": "x"}}; '
    parts, answer = collect(whole + text, BARE, whole=False)
    assert agrees(parts, answer) == [("weather", {"city": "x"})]
    assert isinstance(answer.cut, CutShort)


def test_no_two_calls_of_an_answer_have_one_id():
    first = next(text for form, text in OWN if form is KIMI)
    parts, answer = collect(f"{first}\nand\n{first.replace('x', 'y')}", KIMI)
    assert answer.calls[0].id == "functions.weather:0"
    assert len({call.id for call in answer.calls}) == 2
    assert [call["city"] for _, call in agrees(parts, answer, ids=False)] == ["x", "y"]


def test_a_count_is_no_part_of_a_name_that_no_tool_has():
    text = next(text for form, text in OWN if form is KIMI).replace("weather", "tide")
    _, answer = collect(text, KIMI)
    assert [(one.name, one.id) for one in answer.invalid] == [("tide", "functions.tide:0")]


@pytest.mark.parametrize("form", [MISTRAL, KIMI])
def test_arguments_behind_a_header_may_be_a_string_of_json(form):
    text = next(text for one, text in OWN if one is form)
    inner = '{"city": "x", "days": 2}'
    parts, answer = collect(text.replace(inner, json.dumps(inner)), form)
    assert agrees(parts, answer, ids=not form.id) == [("weather", json.loads(inner))]
    assert answer.text == ""


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ('"Paris"', "Paris"),
        ("'it is'", "it is"),
        ('"one\\ntwo \\"x\\", days=3) (y)"', 'one\ntwo "x", days=3) (y)'),
        ("Paris", "Paris"),
        ('"New" York', '"New" York'),
    ],
)
def test_strings_of_a_form_without_quotes_may_be_quoted(written, said):
    for more, days in ((", days=2", {"days": 2}), ("", {})):
        parts, answer = collect(f"[weather(city={written}{more})]", UNQUOTED)
        assert agrees(parts, answer) == [("weather", {"city": said, **days})]


@pytest.mark.parametrize("form", [GENERIC, MISTRAL, LISTED, CODER])
def test_what_a_grammar_makes_is_read_as_it_was_made(form):
    grammar = tool_grammar(TOOLS, True, form)
    arguments = '{"city": "x"}'
    inner = f'{{"name": "weather", "arguments": {arguments}}}'
    text = {
        GENERIC: f"<tool_call>\n{inner}\n</tool_call>",
        MISTRAL: f"[TOOL_CALLS]weather[ARGS]{arguments}",
        LISTED: f"[TOOL_CALLS][{inner}]",
        CODER: call("x"),
    }[form]
    parts, answer = collect(text, form, grammar=grammar)
    assert agrees(parts, answer) == [("weather", {"city": "x"})]
    assert joined(parts)[2][answer.calls[0].id] == ("weather", arguments)


def test_two_sections_without_a_mark_for_their_end():
    text = '[TOOL_CALLS]weather[ARGS]{"city": "[TOOL_CALLS]"}[TOOL_CALLS]weather[ARGS]{"city": "b"}'
    parts, answer = collect(text, MISTRAL)
    assert [found["city"] for _, found in agrees(parts, answer)] == ["[TOOL_CALLS]", "b"]


def test_ids_that_the_model_writes_are_its_own_and_none_is_taken_twice():
    one = '<|tool_call_begin|>functions.weather:{}<|tool_call_argument_begin|>{{"city": "x"}}'
    text = "<|tool_calls_section_begin|>" + "".join(
        one.format(number) + "<|tool_call_end|>" for number in (0, 1, 1)
    )
    for grammar in (None, tool_grammar(TOOLS, True, KIMI, calls=3)):
        _, answer = collect(f"{text}<|tool_calls_section_end|>", KIMI, grammar=grammar)
        ids = [one.id for one in answer.calls]
        assert ids[:2] == ["functions.weather:0", "functions.weather:1"]
        assert re.fullmatch("call_[0-9a-f]{24}", ids[2])


@pytest.mark.parametrize("form", [GENERIC, MISTRAL])
def test_after_as_many_calls_as_there_may_be_the_answer_is_over(form):
    one = '[TOOL_CALLS]weather[ARGS]{"city": "a"}' if form is MISTRAL else call("a")
    for most in (1, 2):
        parser = AnswerParser(form, TOOLS, most=most)
        parser.feed(one * (most - 1))
        assert not parser.full
        parser.feed(one + "and more words")
        assert parser.full
        answer = parser.finish(whole=True)[1]
        assert [dict(one.arguments) for one in answer.calls] == [{"city": "a"}] * most
        assert answer.text == ""
