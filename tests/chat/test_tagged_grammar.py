"""Forced calls between marks: templates' own calls are taken, and calls taken are read back."""

import random
from dataclasses import replace

import form_cases
import pytest
from byte_grammars import BYTES, takes
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from llm_mlx_promptcache.chat.answer_parser import AnswerParser
from llm_mlx_promptcache.chat.forms import KEY, CallLayout, Form, Hole, Literals, Strings, Tags
from llm_mlx_promptcache.chat.grammar import Caps, tool_grammar
from llm_mlx_promptcache.chat.hand_forms import grammar_form
from llm_mlx_promptcache.chat.schema_check import misfits

# One of each kind: line ends or none round values, keys in marks of their own, marks by type,
# marks inside of marks, spaces before marks, values as Python writes them.
TEMPLATES = (
    "Qwen-Qwen3-Coder-30B-A3B-Instruct",
    "Qwen-Qwen3.6-35B-A3B",
    "GLM-4.6",
    "GLM-4.7-Flash",
    "MiniMax-M2",
    "ByteDance-Seed-OSS",
    "deepseek-ai-DeepSeek-V4",
    "inclusionAI-Ring-2.6-1T",
    "microsoft-FrogBoss-32B-2510",
    "XiaomiMiMo-MiMo-V2-Flash",
)


@pytest.fixture(scope="module")
def templates():
    return {one.name: one for one in form_cases.templates()}


@pytest.fixture(scope="module")
def forms(templates):
    return {name: form_cases.learned(templates[name])[0] for name in TEMPLATES}


def written(template, form, calls, tools):
    """The calls as the template writes them, from their first mark on."""
    text = form_cases.answer_text(template, form, calls, tools)
    return text[text.find((form.start + form.head).strip()) :]


def read(text, form, grammar, tools):
    """The calls that the front end sees of a forced answer."""
    parser = AnswerParser(form, tools, grammar=grammar)
    parser.feed(text)
    answer = parser.finish(whole=True)[1]
    assert not answer.invalid
    assert not answer.text
    return [(call.name, dict(call.arguments)) for call in answer.calls]


def wrong_of(template, form):
    """The cases that the grammar refuses, or reads as something else."""
    wrong = {}
    for case, calls in form_cases.CASES.items():
        if len(calls) > 1 and not form.parallel:
            continue
        tools = form_cases.tools_of(case)
        try:
            text = written(template, form, calls, tools)
        except Exception as error:
            print(template.name, case, "is refused:", error)
            continue
        grammar = tool_grammar(tools, True, form, calls=3)
        found = takes(grammar, text)
        if found != "whole" or read(text, form, grammar, tools) != calls:
            wrong[case] = (found, text)
    return wrong


@pytest.mark.parametrize("name", TEMPLATES)
def test_law_14_a_forced_call_may_be_what_the_template_writes(templates, forms, name):
    assert grammar_form(forms[name]) == forms[name]
    assert not wrong_of(templates[name], forms[name])


@pytest.mark.soak
def test_law_14_all_templates_with_marks_round_arguments(templates):
    seen, wrong = set(), {}
    for template in templates.values():
        form, _, _ = form_cases.learned(template)
        if form is None or form.layout is not CallLayout.TAGS or form in seen:
            continue
        seen.add(form)
        # As for a model that stops there: what ends an answer is no part of its calls.
        form = replace(form, end=form_cases.STOPS.sub("", form.end))
        wrong |= {(template.name, case): one for case, one in wrong_of(template, form).items()}
    # One writes a line end more where there are no arguments.
    assert set(wrong) <= {("crusoeai-DeepSeek-V4-Flash", "empty arguments")}
    assert len(seen) > 20


texts = st.text(st.characters(codec="utf-8"), max_size=12).filter(lambda text: "\r" not in text)
arguments = st.fixed_dictionaries(
    {},
    optional={
        "city": texts,
        "days": st.integers(-(10**9), 10**9),
        "far": st.booleans(),
        "kind": st.sampled_from(["12", "true", "null", '"x"', " [1] ", "</x>", "<b>"]),
        "tags": st.lists(st.text("ab \\\"'é,]", max_size=5), max_size=3),
        "where": st.fixed_dictionaries({}, optional={"name": st.text("ab }\"'", max_size=5)}),
    },
)


@pytest.mark.parametrize("name", [TEMPLATES[1], TEMPLATES[2], TEMPLATES[6]])
@settings(max_examples=40, deadline=None)
@given(made=st.lists(arguments, min_size=1, max_size=2))
def test_law_14_random_calls_are_taken_and_read_back(templates, forms, name, made):
    calls = [("find_place", one) for one in made]
    form, tools = forms[name], form_cases.TOOLS
    text = written(templates[name], form, calls, tools)
    grammar = tool_grammar(tools, "find_place", form, calls=2)
    assert takes(grammar, text) == "whole"
    assert read(text, form, grammar, tools) == calls


def tool(properties, required=(), **more):
    parameters = {"type": "object", "properties": properties, "required": list(required), **more}
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


FORM = Form(
    CallLayout.TAGS,
    ("<f=", Hole.NAME, ">\n", Hole.ARGUMENTS, "</f>"),
    tags=Tags("<p=", ">\n", "\n</p>\n", ">\n", "\n</p>\n", ""),
)


def said(form=FORM, **values):
    """A call of `f` with these texts between the marks, in this order."""
    tags = form.tags
    pairs = (tags.opening + k + tags.middle + v + tags.closing for k, v in values.items())
    return f"<f=f>\n{tags.between.join(pairs)}</f>"


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer"}, ["3", "-12"], ["x", "3.5", '"3"', ""]),
        ({"type": "integer", "minimum": 5}, ["7"], ["3"]),
        ({"type": "boolean"}, ["true", "True"], ["yes", "None"]),
        ({"type": ["boolean", "null"]}, ["null", "None"], ["0"]),
        ({"type": "string", "maxLength": 3}, ["abc", "", "\n\n"], ["abcd"]),
        ({"type": "string", "minLength": 2}, ["ab"], ["a"]),
        ({"type": "string"}, ["</f>", "<p=a>", '"', "12"], []),
        ({"enum": ["red", "12", 5, None, True]}, ["red", "12", "5", "null", "true"], ["blue", "6"]),
        ({"const": "x"}, ["x"], ["y", '"x"']),
        ({"anyOf": [{"const": "a"}, {"enum": ["b"]}]}, ["a", "b"], ["c"]),
        ({"$ref": "#/$defs/c", "$defs": {}}, ["red", "7"], []),
        ({"type": "array", "items": {"type": "integer"}}, ["[1, 2]"], ["1", '["a"]']),
        ({"type": "object", "properties": {"a": {"type": "null"}}}, ['{"a": null}'], ['{"b": 1}']),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, ["x", "12", '"'], []),
        ({}, ["x", "[1, 2]", "12"], []),
    ],
)
def test_values_are_held_as_far_as_their_text_shows(schema, good, bad):
    tools = [tool({"k": schema}, ["k"])]
    grammar = tool_grammar(tools, "f", FORM)
    assert {text: takes(grammar, said(k=text)) for text in good} == dict.fromkeys(good, "whole")
    assert {text: takes(grammar, said(k=text)) for text in bad} == dict.fromkeys(bad, "no")


def test_arguments_stand_once_in_any_order_and_the_required_ones_always():
    tools = [tool({key: {"type": "string"} for key in "abc"}, "ac")]
    grammar = tool_grammar(tools, "f", FORM)
    for keys in ("ac", "ca", "abc", "bca", "cab"):
        assert takes(grammar, said(**dict.fromkeys(keys, "x"))) == "whole", keys
    for keys in ("", "a", "ab", "acd"):
        assert takes(grammar, said(**dict.fromkeys(keys, "x"))) == "no", keys
    twice = said(a="x", c="y").replace("</f>", "<p=a>\nz\n</p>\n</f>")
    assert takes(grammar, twice) == "no"


def test_what_parts_arguments_stands_between_them():
    tags = Tags("<", ":", ">", ":", ">", ", ")
    form = Form(CallLayout.TAGS, ("<f=", Hole.NAME, ">\n", Hole.ARGUMENTS, "</f>"), tags=tags)
    grammar = tool_grammar([tool({"a": {}, "b": {}}, "a")], "f", form)
    assert takes(grammar, said(form, a="1", b="2")) == "whole"
    assert takes(grammar, said(form, b="2", a="1")) == "whole"
    assert takes(grammar, said(form, a="1").replace("1>", "1>, ")) == "no"


def test_a_hundred_arguments_and_keys_that_nobody_declared():
    many = tool({f"k{number}": {"type": "integer"} for number in range(100)}, [f"k{99}"])
    grammar = tool_grammar([many], "f", FORM)
    assert takes(grammar, said(k99="1", k98="2", k5="3")) == "whole"
    assert takes(grammar, said(k5="3")) == "no"
    free = tool({"city": {"type": "string"}}, additionalProperties={"type": "integer"})
    grammar = tool_grammar([free], "f", FORM)
    assert takes(grammar, said(city2="1", city="x", c="2")) == "whole"
    assert takes(grammar, said(city2="x")) == "no"


def test_what_is_not_held_is_named():
    kept = {"type": "string", "pattern": "^a+$"}
    either = {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 0}]}
    tools = [tool({"a": kept, "b/c": either, "d": {"type": "string", "maxLength": 3}, ">e": {}})]
    found = tool_grammar(tools, "f", FORM).unheld
    assert {(one.tool, one.what.pointer, one.what.keyword) for one in found} == {
        ("f", "/properties/a", "pattern"),
        ("f", "/properties/b~1c", "minimum"),
        ("f", "/properties/>e", "its name"),
    }
    assert not tool_grammar(form_cases.TOOLS, True, FORM).unheld


def test_a_closing_mark_may_have_the_key_and_marks_may_tell_the_type():
    tags = Tags("<p=", " as=n>", f"</{KEY}>", " as=s>", f"</{KEY}>", "")
    form = Form(CallLayout.TAGS, ("<f=", Hole.NAME, ">\n", Hole.ARGUMENTS, "</f>"), tags=tags)
    tools = [tool({"a": {"type": ["string", "integer"]}, "b": {"type": "integer"}})]
    grammar = tool_grammar(tools, "f", form)
    text = "<f=f>\n<p=a as=s>12</a><p=b as=n>3</b></f>"
    assert takes(grammar, text) == "whole"
    assert read(text, form, grammar, tools) == [("f", {"a": "12", "b": 3})]
    assert takes(grammar, "<f=f>\n<p=a as=n>12</a></f>") == "whole"
    assert takes(grammar, "<f=f>\n<p=a as=n>x</a></f>") == "no"
    assert takes(grammar, "<f=f>\n<p=b as=s>3</b></f>") == "no"


def test_values_as_json_strings_or_as_python_writes_them():
    quoting = Tags("<", ">", "</>", ">", "</>", "", strings=Strings.JSON)
    form = Form(CallLayout.TAGS, ("<f=", Hole.NAME, ">\n", Hole.ARGUMENTS, "</f>"), tags=quoting)
    tools = [tool({"a": {"type": "string"}, "b": {"type": "array"}})]
    grammar = tool_grammar(tools, "f", form)
    assert takes(grammar, said(form, a='"x\\n"', b="[1]")) == "whole"
    assert takes(grammar, said(form, a="x")) == "no"
    form = replace(FORM, tags=replace(FORM.tags, values=Literals.PYTHON))
    grammar = tool_grammar(tools, "f", form)
    text = said(form, a="it's", b="['a', \"it's\", {'b': None}, -1.5]")
    assert takes(grammar, text) == "whole"
    made = {"a": "it's", "b": ["a", "it's", {"b": None}, -1.5]}
    assert read(text, form, grammar, tools) == [("f", made)]


@pytest.mark.parametrize("name", TEMPLATES)
def test_law_14_whatever_the_grammar_yields_is_read_back(forms, name):
    """Random walks through the grammar: each is a call that fits its schema."""
    form = forms[name]
    properties = {
        "t": {"type": "string"},
        "n": {"type": "integer"},
        "e": {"enum": ["a", "b\n"]},
        "l": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        "o": {"type": ["boolean", "null"]},
    }
    if form.tags.values is Literals.PYTHON:
        del properties["l"]  # what is nested is only checked
    tools = [tool(properties, ["t", "e"])]
    grammar = tool_grammar(tools, "f", form, calls=1, caps=Caps(string=6, items=2))
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chosen = random.Random(seed)
    for _ in range(12):
        text = walked(grammar, chosen)
        [(called, made)] = read(text, form, grammar, tools)
        assert called == "f"
        assert not misfits(made, tools[0]["function"]["parameters"]), text
        assert made["t"] in text


def walked(grammar, chosen):
    """A whole answer by `grammar`, a random byte at a time."""
    matcher = LLMatcher(BYTES, grammar.text, log_level=0)
    said = bytearray()
    while not matcher.is_stopped():
        bits = matcher.compute_bitmask()
        free = [byte for byte in range(256) if bits[byte // 8] >> byte % 8 & 1]
        if not free:
            break
        byte = chosen.choice(free)
        assert matcher.consume_token(byte)
        said.append(byte)
    assert matcher.is_accepting()
    return said.decode()
