"""Grammars take what they should, end, and say which field is wrong."""

import contextlib
import json
import re

import pytest
from byte_grammars import takes
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_mlx_promptcache.chat.forms import CallLayout, Form, Hole, Tags
from llm_mlx_promptcache.chat.grammar import (
    Caps,
    GrammarError,
    json_object_grammar,
    regex_grammar,
    schema_grammar,
    tool_grammar,
)
from llm_mlx_promptcache.chat.hand_forms import GENERIC, hand_form
from llm_mlx_promptcache.chat.schema_caps import capped

CALL = '<tool_call>\n{"name": "magic", "arguments": {"input": 3}}\n</tool_call>'
EMPTY = '<tool_call>\n{"name": "nöthing \\"at all\\"", "arguments": {}}\n</tool_call>'


def tool(name, parameters=None):
    function = {"name": name, "description": "Does it."}
    if parameters is not None:
        function["parameters"] = parameters
    return {"type": "function", "function": function}


MAGIC = tool(
    "magic",
    {"type": "object", "properties": {"input": {"type": "integer"}}, "required": ["input"]},
)
HEADER = Form(CallLayout.HEADER, ("[TOOL_CALLS]", Hole.NAME, "[ARGS]", Hole.ARGUMENTS))
TOOLS = [tool('nöthing "at all"'), MAGIC]


@pytest.mark.parametrize(
    ("choice", "calls", "text", "result"),
    [
        ("magic", 1, CALL, "whole"),
        ("magic", 1, "Well: ", "no"),
        ("magic", 1, EMPTY, "no"),
        ("magic", 1, f"{CALL}\n", "no"),
        ("magic", 2, f"{CALL}\n{CALL}", "whole"),
        ("magic", 2, f"{CALL}\n{CALL}\n", "no"),
        (True, 1, EMPTY, "whole"),
        (True, 3, f"{EMPTY}\n{CALL}", "whole"),
        (True, 1, "", "begun"),
    ],
)
def test_tools_are_called_as_the_choice_says(choice, calls, text, result):
    assert takes(tool_grammar(TOOLS, choice, GENERIC, calls=calls), text) == result


def test_the_order_of_tools_does_not_matter():
    one, other = (tool_grammar(order, True, GENERIC).text for order in (TOOLS, TOOLS[::-1]))
    assert one == other


def test_calls_or_a_document():
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    grammar = tool_grammar(TOOLS, None, GENERIC, schema=schema)
    assert grammar.kind == "tools_or_schema"
    for text, result in ((CALL, "whole"), ('{"a": "x"}', "whole"), ("Well", "no"), ("", "begun")):
        assert takes(grammar, text) == result


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (HEADER, '[TOOL_CALLS]magic[ARGS]{"input": 3}'),
        (
            Form(CallLayout.OBJECT, GENERIC.call[1:-1], start='[TOOL_CALLS][{"name": "', end="}]"),
            '[TOOL_CALLS][{"name": "magic", "arguments": {"input": 3}}]',
        ),
        (
            hand_form(None, ["<|tool_calls_section_begin|>", "<|tool_call_argument_begin|>"]),
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.magic:0"
            '<|tool_call_argument_begin|>{"input": 3}<|tool_call_end|><|tool_calls_section_end|>',
        ),
        (Form(CallLayout.TAGS, ("<x>", Hole.NAME), tags=Tags("", "", "", "", "", "")), CALL),
    ],
)
def test_models_write_calls_in_their_own_form_or_else_the_generic_one(form, text):
    assert takes(tool_grammar([MAGIC], "magic", form), text) == "whole"


def test_special_tokens_are_named_by_their_ids():
    call = ('<s>{"name": "', *GENERIC.call[1:-1], "}</s>")
    form = Form(CallLayout.OBJECT, call, special=(("<s>", 7), ("</s>", 9)))
    for choice in (True, "magic"):
        text = tool_grammar([MAGIC], choice, form).text
        assert "<[7]>" in text
        assert "<[9]>" in text
        assert '"<s>"' not in text


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: schema_grammar({"type": "foo"}), "schema is refused: nothing of it can be held"),
        (lambda: schema_grammar([]), "schema is a list"),
        (lambda: schema_grammar({"not": {}}), "schema is refused"),
        (lambda: schema_grammar({"enum": []}), "schema can't be satisfied"),
        (lambda: schema_grammar({"$ref": "https://example.com/x"}), "schema is refused"),
        (lambda: schema_grammar({"minimum": float("nan")}), "schema holds nan"),
        (
            lambda: schema_grammar({"type": "integer", "minimum": 3, "maximum": 2}),
            "schema can't be satisfied",
        ),
        (lambda: tool_grammar([], True, GENERIC), "tools is empty"),
        (lambda: tool_grammar([MAGIC, tool("")], True, GENERIC), "tools[1].function.name"),
        (lambda: tool_grammar([MAGIC, MAGIC], True, GENERIC), "tools[1].function.name"),
        (lambda: tool_grammar([MAGIC], "magi", GENERIC), "tool_choice is 'magi'"),
        (lambda: tool_grammar([MAGIC], True, GENERIC, calls=0), "the limit of calls is 0"),
        (lambda: tool_grammar([MAGIC], None, GENERIC), "text has no grammar"),
        (
            lambda: tool_grammar([MAGIC, tool("a b")], True, HEADER),
            "tools[1].function.name is 'a b'",
        ),
        (lambda: regex_grammar(""), "regex is empty"),
        (lambda: regex_grammar("(a"), "regex is refused"),
        (lambda: regex_grammar("(?=a)b"), "regex is refused"),
        (lambda: regex_grammar(r"(a)\1"), "regex is refused"),
        (lambda: regex_grammar(r"[^\s\S]"), "regex can't be satisfied"),
        (lambda: regex_grammar("a{21,}", longest=20), "of 20 characters or less"),
        (lambda: Caps(string=0), "the cap string is 0"),
        (lambda: Caps(items=0), "the cap items is 0"),
    ],
)
def test_what_is_refused_names_its_field_in_one_line(make, field):
    with pytest.raises(ValueError, match=re.escape(field)) as raised:
        make()
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_errors_are_grammar_errors():
    with pytest.raises(GrammarError):
        schema_grammar({"type": "foo"})


def test_a_regex_that_never_ends_ends():
    grammar = regex_grammar("a*/?", longest=5)
    assert [takes(grammar, "a" * size) for size in (0, 5, 6)] == ["whole", "whole", "no"]
    assert takes(regex_grammar("^a\nb$"), "a\nb") == "whole"


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string"}, '"' + "x" * 8 + '"', '"' + "x" * 9),
        ({"type": "string", "minLength": 10}, '"' + "x" * 10 + '"', '"' + "x" * 11),
        ({"type": "string", "maxLength": 12}, '"' + "x" * 12 + '"', '"' + "x" * 13),
        ({"type": "string", "pattern": "^a{20}$"}, '"' + "a" * 20 + '"', '"b'),
        ({"type": "string", "format": "path"}, '"a/b"', '"' + "x" * 9),
        ({"type": "integer"}, "9" * 18, "9" * 20),
        ({"type": "array", "items": {"type": "integer"}}, "[1, 2]", "[1, 2, 3"),
        ({"type": "array"}, '[{"a": [1]}, 2]', '["' + "x" * 9),
        ({}, '{"a": {"b": [1]}}', '{"aaaaaaaaa'),
        ({"properties": {"a": {"type": "integer"}}}, '{"a": 1}', '{"b"'),
        ({"type": "object", "required": ["a"]}, '{"a": [1]}', "{}"),
        ({"type": "object", "additionalProperties": {"type": "null"}}, '{"b": null}', '{"b": 1'),
        ({"type": ["string", "null"]}, "null", '"' + "x" * 9),
        ({"$ref": "#/$defs/s", "$defs": {"s": {"type": "string"}}}, '"x"', '"' + "x" * 9),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "null", '"' + "x" * 9),
        ({"allOf": [{"type": "string"}, {"minLength": 10}]}, '"' + "x" * 10 + '"', "1"),
        (
            {"allOf": [{"properties": {"a": {"type": "null"}}, "required": ["b"]}]},
            '{"a": null, "b": 1}',
            '{"a": 1',
        ),
        ({"type": "string"}, '"é\\n\\""', '"\\u00e9'),
    ],
)
def test_what_could_go_on_for_ever_gets_an_end(schema, good, bad):
    grammar = schema_grammar(schema, caps=Caps(string=8, items=2))
    assert takes(grammar, good) == "whole"
    assert takes(grammar, bad) == "no"


LONG = "x" * 20_000 + "é\n"
DEEP = {"a": [[[[[[[LONG]]]]]]]}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string"}, LONG),
        ({"type": "string", "pattern": "^x"}, LONG),
        ({"type": "string", "format": "path"}, LONG),
        ({"type": "integer"}, 10**40),
        ({"type": "array"}, DEEP["a"]),
        ({"type": "object"}, DEEP | {LONG: 1}),
        ({"type": "object", "additionalProperties": {"type": "string"}}, {LONG: LONG}),
        ({"properties": {"a": {}}}, DEEP),
        ({"properties": {"a": True}}, DEEP),
        ({"description": "Anything."}, DEEP),
    ],
)
def test_law_14_without_a_cap_nothing_is_cut(schema, value):
    text = json.dumps(value, ensure_ascii=False)
    assert takes(schema_grammar(schema), text) == "whole"
    grammar = tool_grammar(
        [tool("t", {"type": "object", "properties": {"v": schema}})], "t", HEADER
    )
    assert takes(grammar, f'[TOOL_CALLS]t[ARGS]{{"v": {text}}}') == "whole"


def test_a_recursive_schema_stays_recursive():
    node = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "next": {"$ref": "#/$defs/node"}},
        "required": ["name"],
    }
    schema = {"$ref": "#/$defs/node", "$defs": {"node": node}}
    text = '{"name": "a", "next": {"name": "b", "next": {"name": "c"}}}'
    assert takes(schema_grammar(schema), text) == "whole"


def test_capping_leaves_what_it_was_given_and_json_object_is_one():
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    before = json.dumps(schema)
    assert capped(schema, Caps(string=256))["properties"]["a"]["maxLength"] == 256
    assert json.dumps(schema) == before
    assert takes(json_object_grammar(), '{"a": [1, {"b": null}]}') == "whole"
    assert takes(json_object_grammar(), "[") == "no"


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=5)
leaves = st.sampled_from(
    [
        ({"type": "string"}, "é\n"),
        ({"type": "integer"}, -12),
        ({"type": "boolean"}, True),
        ({"type": ["null", "integer"]}, None),
        ({"enum": ["a", 2]}, 2),
        ({"type": "number"}, 1.5),
        ({}, {"any": [1]}),
        (True, "x"),
    ]
)


def _objects(children):
    pairs = st.dictionaries(names, children, max_size=3)
    return pairs.map(
        lambda found: (
            {
                "type": "object",
                "properties": {name: schema for name, (schema, _) in found.items()},
                "required": list(found),
            },
            {name: value for name, (_, value) in found.items()},
        )
    )


def _lists(children):
    return children.map(lambda one: ({"type": "array", "items": one[0]}, [one[1]] * 2))


@settings(max_examples=60, deadline=None)
@given(st.recursive(leaves, lambda inner: _objects(inner) | _lists(inner), max_leaves=6))
def test_random_schemas_take_a_document_that_fits_them(made):
    schema, value = made
    if schema is True:
        return
    text = json.dumps(value, ensure_ascii=False)
    assert takes(schema_grammar(schema), text) == "whole"


@settings(max_examples=30, deadline=None)
@given(names)
def test_tools_may_have_any_name(name):
    grammar = tool_grammar([tool(name)], name, GENERIC)
    call = json.dumps({"name": name, "arguments": {}}, ensure_ascii=False)
    assert takes(grammar, f"<tool_call>\n{call}\n</tool_call>") == "whole"


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5) | st.booleans(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "type",
                        "properties",
                        "items",
                        "anyOf",
                        "required",
                        "$defs",
                        "format",
                        "minLength",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
@example({"properties": {"anyOf": False, "properties": None}})
def test_nonsense_is_a_grammar_or_a_grammar_error(schema):
    with contextlib.suppress(GrammarError):
        schema_grammar(schema)
