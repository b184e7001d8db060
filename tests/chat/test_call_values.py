"""Calls whose values JSON can't tell again, or that don't fit their tool: invalid, with their text.

The same text is read as one piece and character by character, by several forms.
"""

import json

import pytest
from odd_schemas import ODD

from llm_mlx_promptcache.chat.answer_parser import AnswerParser
from llm_mlx_promptcache.chat.answer_parts import CallArguments, CallName
from llm_mlx_promptcache.chat.arguments import fitted, unfit
from llm_mlx_promptcache.chat.channel_parser import parser_of
from llm_mlx_promptcache.chat.forms import CallLayout, Form, Hole, Tags
from llm_mlx_promptcache.chat.hand_forms import GENERIC, hand_form

TOOL = {
    "type": "function",
    "function": {
        "name": "book",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "price": {"type": "number"},
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "tags": {"type": "array", "items": {"type": "integer"}},
                "who": {
                    "type": "object",
                    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
                    "required": ["name"],
                },
                "any": {},
            },
            "required": ["city"],
        },
    },
}
HARMONY = hand_form(None, ("<|start|>", "<|channel|>", "<|message|>"))
HEADER = Form(CallLayout.HEADER, ("[TOOL_CALLS]", Hole.NAME, "[ARGS]", Hole.ARGUMENTS))
TAGGED = Form(
    CallLayout.TAGS,
    ("<tool_call>\n<function=", Hole.NAME, ">\n", Hole.ARGUMENTS, "</function>\n</tool_call>"),
    tags=Tags("<parameter=", ">\n", "\n</parameter>\n", ">\n", "\n</parameter>\n", ""),
)


def written(form, arguments):
    """The call of `book` with this JSON as its arguments, as a form of JSON writes it."""
    if form is HARMONY:
        return f"<|channel|>commentary to=functions.book <|constrain|>json<|message|>{arguments}"
    if form is HEADER:
        return f"[TOOL_CALLS]book[ARGS]{arguments}"
    return f'<tool_call>\n{{"name": "book", "arguments": {arguments}}}\n</tool_call>'


def read(form, text, size, whole=True):
    parser = parser_of(form, [TOOL])
    assert form is HARMONY or isinstance(parser, AnswerParser)
    parts = [p for at in range(0, len(text), size) for p in parser.feed(text[at : at + size])]
    last, answer = parser.finish(whole=whole)
    return [*parts, *last], answer


json_forms = pytest.mark.parametrize(
    "form", [GENERIC, HEADER, HARMONY], ids=["object", "header", "harmony"]
)
sizes = pytest.mark.parametrize("size", [1, 10_000])


@json_forms
@sizes
@pytest.mark.parametrize(
    "arguments",
    [
        '{"city": "x", "price": 1e999}',
        '{"city": "x", "price": -1e999}',
        '{"city": "x", "price": NaN}',
        '{"city": "x", "price": Infinity}',
        '{"city": "x", "days": ' + "9" * 5000 + "}",
        '{"city": "x", "any": 0x' + "f" * 5000 + "}",
        '{"city": "x", "any": [1e999]}',
        "{'city': 'x', 'price': 1e999}",
        '{"city": "\\ud800"}',
        '{"city": "x", "\\udfff": 1}',
        '{"city": "a", "city": "b"}',
        "{'city': 'a', 'city': 'b'}",
        '{"city": "x", "who": {"name": "a", "name": "b"}}',
        "{1: 2, 'city': 'x'}",
        '{"days": 3}',
        "{}",
        '{"city": null}',
        '{"city": ["x"]}',
        '{"city": "x", "days": "soon"}',
        '{"city": "x", "days": 2.5}',
        '{"city": "x", "days": true}',
        '{"city": "x", "tags": ["a"]}',
        '{"city": "x", "who": {"age": 3}}',
        '{"city": "x", "who": "me"}',
    ],
)
def test_law_14_what_no_tool_can_be_given_is_an_invalid_call_with_its_text(form, size, arguments):
    text = written(form, arguments)
    parts, answer = read(form, text, size)
    (call,) = answer.invalid
    assert call.name == "book"
    assert call.error
    assert arguments[1:12] in call.text
    assert (answer.calls, answer.text) == ((), "")
    assert not [one for one in parts if isinstance(one, (CallName, CallArguments))]
    # What was said is in the call's text alone: errors are shown and logged.
    assert not any(word in call.error for word in ("soon", "2.5"))


@json_forms
@sizes
@pytest.mark.parametrize(
    ("arguments", "made"),
    [
        ('{"city": "\\u0000"}', {"city": "\0"}),
        ('{"city": "\\ud83d\\ude00"}', {"city": "😀"}),
        ('{"city": "x", "city": "x"}', {"city": "x"}),
        ('{"city": 75001}', {"city": "75001"}),
        ('{"city": "x", "days": 3.0}', {"city": "x", "days": 3}),
        ('{"city": "x", "days": "3"}', {"city": "x", "days": 3}),
        ('{"city": "x", "days": null}', {"city": "x"}),
        ('{"city": "x", "note": null}', {"city": "x", "note": None}),
        ('{"city": "x", "price": 3}', {"city": "x", "price": 3}),
        ('{"city": "x", "price": 1e300}', {"city": "x", "price": 1e300}),
        (
            '{"city": "x", "any": 12345678901234567890123}',
            {"city": "x", "any": 12345678901234567890123},
        ),
        ('{"city": "x", "tags": ["1", 2.0]}', {"city": "x", "tags": [1, 2]}),
        ('{"city": "x", "who": {"name": 7}}', {"city": "x", "who": {"name": "7"}}),
        ('{"city": "x", "more": [null]}', {"city": "x", "more": [None]}),
    ],
)
def test_values_get_the_types_that_the_tool_asks_for_where_nothing_is_lost(
    form, size, arguments, made
):
    _, answer = read(form, written(form, arguments), size)
    (call,) = answer.calls
    assert json.dumps(call.arguments) == json.dumps(made)
    assert answer.invalid == ()


@sizes
@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("1e999", "its argument price has the type string"),
        ("a lot", "its argument price has the type string"),
    ],
)
def test_tagged_values_of_another_type_make_their_call_invalid(size, value, error):
    text = (
        "<tool_call>\n<function=book>\n<parameter=city>\nx\n</parameter>\n"
        f"<parameter=price>\n{value}\n</parameter>\n</function>\n</tool_call>"
    )
    _, answer = read(TAGGED, text, size)
    (call,) = answer.invalid
    assert call.error.startswith(error)
    assert value in call.text


def test_a_call_that_fits_stands_beside_one_that_does_not():
    text = "\n".join(written(GENERIC, one) for one in ('{"city": "a"}', "{}", '{"city": "b"}'))
    _, answer = read(GENERIC, text, 7)
    assert [call.arguments for call in answer.calls] == [{"city": "a"}, {"city": "b"}]
    (call,) = answer.invalid
    assert call.error == "its argument city is missing"


@pytest.mark.parametrize("odd", [o for o in ODD if isinstance(ODD[o][0], dict)])
def test_odd_schemas_take_what_fits_them(odd):
    parameters, fits, _ = ODD[odd]
    if odd not in ("never", "itself without an end"):
        assert unfit(fitted(fits, parameters), parameters) == ""
        assert fitted(fits, parameters) == fits


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": ["string", "integer"]}, 5),
        (
            {
                "anyOf": [
                    {"type": "object", "properties": {"v": {"type": "integer"}}},
                    {"type": "object", "properties": {"v": {"type": "string"}}},
                ]
            },
            {"v": "x"},
        ),
        ({"anyOf": [{}, {"type": "integer"}]}, "x"),
        ({"type": "string", "enum": [5]}, 5),
        ({"type": "foo"}, [1]),
        ({"$ref": "#/nowhere"}, 3),
        ({"$ref": "https://example.com/x"}, 3),
        ({"allOf": [{"type": "number"}, {"type": "integer"}]}, 3),
        ({"type": "string", "nullable": True}, None),
        ({"type": "object", "required": ["a"], "properties": {"a": {"default": 1}}}, {}),
        ({"type": "object", "properties": {"a": {"required": True}}}, {}),
        ({"anyOf": [{"required": ["a"]}, {"required": ["b"]}], "type": "object"}, {"b": 1}),
        (
            {"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "integer"}},
            ["a"],
        ),
    ],
)
def test_what_may_fit_is_let_through(schema, value):
    assert unfit(value, schema, "it") == ""
    assert fitted(value, schema) == value


def test_schemas_that_mean_harm_take_bounded_work():
    wide = {"anyOf": [{"anyOf": [{"anyOf": [{"type": "integer"}] * 64}] * 64}] * 64}
    loop = {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}] * 64}}, "$ref": "#/$defs/a"}
    node = {"type": "object", "properties": {"n": {"$ref": "#"}}, "items": {"$ref": "#"}}
    value = {}
    for _ in range(60):
        value = {"n": [value]}
    for schema in (wide, loop, node):
        assert fitted(value, schema) == value
        unfit(value, schema)


@sizes
@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"name": "book", "parameters": {"days": 3}}', "its argument city is missing"),
        ('{"name": "book", "arguments": {"city": "x", "price": 1e999}}', "its JSON can't be read"),
        ('{"name": "bok", "parameters": {"city": "x"}}', "no tool has this name"),
        ('{"name": "Ada", "age": 3}', ""),
        ('{"name": "Ada"}', ""),
        ('{"name": "book", "parameters": {"city": "x"}} is how to book.', ""),
    ],
)
def test_calls_without_marks_are_calls_where_they_are_all_that_is_said(size, text, error):
    bare = hand_form(None, ("<|python_tag|>",))
    _, answer = read(bare, text, size)
    assert [one.error for one in answer.invalid] == ([error] if error else [])
    assert answer.text == ("" if error else text)
    assert answer.calls == ()
