"""Arguments become values of the types that their tool's schema asks for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_mlx_promptcache.chat.arguments import fitted, kinds_of, literal, property_schema, value_of

TEXT, WHOLE, NULL = {"type": "string"}, {"type": "integer"}, {"type": "null"}
OPTIONAL_TEXT, OPTIONAL_WHOLE = {"anyOf": [TEXT, NULL]}, {"anyOf": [WHOLE, NULL]}


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("123", TEXT, "123"),
        ("null", TEXT, "null"),
        ('"quoted"', TEXT, '"quoted"'),
        (" a \n", TEXT, " a \n"),
        ('{"a": 1}', OPTIONAL_TEXT, '{"a": 1}'),
        ("null", OPTIONAL_TEXT, None),
        ("None", OPTIONAL_TEXT, None),
        ("5", OPTIONAL_WHOLE, 5),
        ("5", {"type": ["integer", "null"]}, 5),
        ("2026-01-15", WHOLE, "2026-01-15"),
        ("True", {"type": "boolean"}, True),
        ("true", {"type": "boolean"}, True),
        ("1", {"type": "boolean"}, "1"),
        ("2", {"type": "number"}, 2),
        ("['a', 'b']", {"type": "array"}, ["a", "b"]),
        ('["a", null]', {"type": "array"}, ["a", None]),
        ("{'a': None}", {"type": "object"}, {"a": None}),
        ("1", {"enum": ["1", "2"]}, "1"),
        ("null", {"enum": ["null", None]}, "null"),
        ("3", {}, 3),
        ("three", {}, "three"),
        ("__import__('os')", {}, "__import__('os')"),
    ],
)
def test_text_is_read_by_its_schema(text, schema, value):
    read = value_of(text, schema)
    assert (read, type(read)) == (value, type(value))


def test_strings_of_json_become_what_the_schema_asks_for_and_others_stay():
    assert fitted("5", WHOLE) == 5
    assert fitted("[1]", {"type": "array"}) == [1]
    assert fitted("5", TEXT) == "5"
    assert fitted("soon", WHOLE) == "soon"
    assert fitted(5, TEXT) == "5"
    assert fitted(5, {}) == 5
    assert fitted(2.5, TEXT) == 2.5


def test_references_are_followed_inside_the_schema_only_and_end():
    schema = {
        "properties": {
            "a": {"$ref": "#/$defs/n"},
            "b": {"$ref": "#/$defs/loop"},
            "c": {"$ref": "https://example.com/x"},
        },
        "$defs": {"n": WHOLE, "loop": {"$ref": "#/$defs/loop"}},
    }
    assert value_of("5", property_schema(schema, "a")) == 5
    assert kinds_of(property_schema(schema, "a")) == {"integer"}
    assert value_of("5", property_schema(schema, "b")) == 5
    assert value_of("5", property_schema(schema, "c")) == 5
    assert property_schema(schema, "d") == {}


@given(st.text(max_size=40) | st.text("[({'\"-0.", max_size=400))
def test_no_text_is_anything_but_a_value_or_refused(text):
    try:
        literal(text)
    except ValueError:
        assert value_of(text, {}) == text
