"""No tool's schema refuses a request: rules no grammar can hold are dropped, named, and checked."""

import json
import random

import pytest
from byte_grammars import BYTES, verdict
from llguidance import LLMatcher
from odd_schemas import ODD, TEXT, of

from llm_mlx_promptcache.chat import schema_loosening
from llm_mlx_promptcache.chat.grammar import GrammarError, schema_grammar, tool_grammar
from llm_mlx_promptcache.chat.grammar_check import json_rule
from llm_mlx_promptcache.chat.hand_forms import GENERIC
from llm_mlx_promptcache.chat.schema_caps import Caps
from llm_mlx_promptcache.chat.schema_check import misfits
from llm_mlx_promptcache.chat.schema_loosening import loosened, loosened_arguments
from llm_mlx_promptcache.chat.schema_supersets import pattern_size

CAPS = Caps()


def takes(schema, value):
    """True if a grammar of `schema` takes `value` as a whole document."""
    text = f"%llguidance {{}}\nstart: {json_rule(schema)}\n"
    return verdict(text, json.dumps(value, ensure_ascii=False)) == "whole"


def tool(name, parameters):
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@pytest.mark.parametrize("odd", ODD)
def test_law_13_an_odd_tool_is_held_as_far_as_it_can_be(odd):
    parameters, fits, breaks = ODD[odd]
    held = loosened_arguments(parameters, CAPS)
    # A superset: what the schema takes, the grammar takes.
    assert takes(held.schema, fits)
    if breaks is not None:
        # What the grammar can't hold is named, and found in the answer.
        assert held.left_out
        assert takes(held.schema, breaks)
        assert misfits(breaks, parameters)
    grammar = tool_grammar([tool("fine", of(TEXT)), tool("odd", parameters)], True, GENERIC)
    assert all(one.tool == "odd" for one in grammar.unheld)
    assert {one.what for one in grammar.unheld} == set(held.left_out)


@pytest.mark.parametrize("odd", [o for o in ODD if isinstance(ODD[o][0], dict)])
def test_what_a_schema_takes_is_no_misfit(odd):
    parameters, fits, _ = ODD[odd]
    known = {"nothing between", "never", "itself without an end", "not a thing", "no object"}
    if odd not in known:
        assert misfits(fits, parameters) == ()


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        (ODD["set of strings"][0], ["uniqueItems at /properties/a"]),
        (ODD["an e-mail of zod"][0], ["pattern at /properties/a"]),
        (ODD["if and then"][0], ["if at /"]),
        (ODD["elsewhere on the net"][0], ["$ref at /properties/a"]),
        (ODD["one of two that overlap"][0], ["oneOf at /properties/a"]),
        (
            of(
                {"type": "array", "items": {"$ref": "#/$defs/S"}},
                **{"$defs": {"S": {**TEXT, "pattern": "(?=a)b"}}},
            ),
            ["pattern at /$defs/S"],
        ),
        (
            of({"anyOf": [{**TEXT, "pattern": "(?=a)b"}, {"type": "integer"}]}, title="x"),
            ["pattern at /properties/a/anyOf/0"],
        ),
        (of({"a/b~c": 1, **TEXT}), []),
        (
            {"type": "object", "properties": {"a/b": {**TEXT, "pattern": "(?=a)b"}}},
            ["pattern at /properties/a~1b"],
        ),
    ],
)
def test_what_is_left_out_is_named_by_its_place_in_what_was_given(parameters, told):
    assert [str(one) for one in loosened_arguments(parameters, CAPS).left_out] == told


def test_only_the_odd_part_of_many_is_loosened():
    names = [f"p{number}" for number in range(40)]
    properties = {name: {"type": "integer", "minimum": 1, "maximum": 9} for name in names}
    properties["p17"] = {**TEXT, "pattern": "(?=a)b"}
    held = loosened_arguments({"type": "object", "properties": properties}, CAPS)
    assert [str(one) for one in held.left_out] == ["pattern at /properties/p17"]
    for name in names:
        assert takes(held.schema, {name: "x" if name == "p17" else 5})
        assert not takes(held.schema, {name: 3.5 if name == "p17" else 50})


@pytest.mark.parametrize(
    ("odd", "value"),
    [
        ("names from a list", {"a": {"z": 1}}),
        ("names from a list", {"a": {"x": "1"}}),
        ("set of literals", {"a": ["x", "y", "x"]}),
        ("not null", {"a": None}),
        ("nothing unevaluated", {"a": "x", "b": 1}),
        ("declared in then alone", {"a": "x", "b": "1"}),
        ("declared in then alone", {"a": "x", "z": 1}),
        ("declared beside alone", {"a": "x", "b": "1"}),
        ("a whole address of a relative name", {"a": "x"}),
        ("an e-mail of zod", {"a": 3}),
        ("bounds of draft 4", {"a": 0}),
        ("a tuple of draft 4", {"a": [1, "x"]}),
        ("numbers as text", {"a": "x"}),
        ("types in capitals", {}),
        ("definitions beside the reference", {"a": "x"}),
        ("all of a definition", {"a": 1}),
    ],
)
def test_what_can_be_held_is_held(odd, value):
    assert not takes(loosened_arguments(ODD[odd][0], CAPS).schema, value)


def test_a_schema_that_is_the_request_is_held_as_far_as_it_can_be():
    grammar = schema_grammar(of({**TEXT, "pattern": "(?=a)b"}))
    assert [(one.tool, str(one.what)) for one in grammar.unheld] == [
        ("", "pattern at /properties/a")
    ]
    assert schema_grammar({**TEXT, "pattern": "(?=a)b"}).unheld
    for nothing in ({"not": {}}, {"type": "foo"}, {"$ref": "https://example.com/x"}):
        with pytest.raises(GrammarError, match="schema is refused: nothing of it can be held"):
            schema_grammar(nothing)
    for never in (
        of(False),
        {"enum": []},
        of({"type": "integer", "minimum": 3, "maximum": 2}),
    ):
        with pytest.raises(GrammarError, match="schema can't be satisfied by any text"):
            schema_grammar(never)


def test_the_work_is_bounded(monkeypatch):
    asked = []
    real = schema_loosening.refusal
    monkeypatch.setattr(schema_loosening, "refusal", lambda text: asked.append(1) or real(text))
    many = {f"p{n}": {**TEXT, "pattern": f"(?=a)b{n}"} for n in range(400)}
    held = loosened_arguments({"type": "object", "properties": many}, CAPS)
    assert [str(one) for one in held.left_out] == ["more than can be held at /"]
    assert held.schema["type"] == "object"
    assert len(asked) < 320
    asked.clear()
    loosened_arguments({"type": "object", "properties": dict(many)}, CAPS)
    assert not asked  # found out once a process


def test_schemas_that_mean_harm_take_bounded_work():
    deep = TEXT
    for _ in range(200):
        deep = {"anyOf": [deep]}
    doubling = {f"x{n}": {"allOf": [{"$ref": f"#/$defs/x{n + 1}"}] * 2} for n in range(40)}
    crossed = {
        f"x{n}": {
            "properties": {f"p{m}": {} for m in range(12)},
            "dependentSchemas": {f"p{m}": {"$ref": f"#/$defs/x{(n + m) % 40}"} for m in range(12)},
        }
        for n in range(40)
    }
    for harm in (
        deep,
        {
            "type": "object",
            "properties": {"a": TEXT},
            "dependentSchemas": {"a": {"$ref": "#/$defs/x0"}},
            "$defs": crossed,
        },
        of({"$ref": "#/$defs/x0"}, **{"$defs": {**doubling, "x40": {}}}),
        of(
            {"$ref": "#/$defs/x"},
            **{"$defs": {"x": {"$ref": "#/$defs/y"}, "y": {"$ref": "#/$defs/x"}}},
        ),
        of({"enum": [f"value {n}" for n in range(20_000)]}),
        of({"enum": ["x" * 2_000_000]}),
        {"type": "object", "properties": {f"p{n}": {"properties": {}} for n in range(30_000)}},
        of({**TEXT, "pattern": "(" * 3000 + ")" * 3000}),
    ):
        assert loosened_arguments(harm, CAPS).schema["type"] == "object"
        misfits({"a": "x"}, harm)


@pytest.mark.parametrize(
    ("pattern", "size"),
    [
        ("abc", 3),
        ("a{10}", 10),
        ("(ab){10}", 20),
        ("((a{10}){10}){10}", 1000),
        ("[a-z]{2,5}", 5),
        (r"\{9}", 3),
        ("a{3,}", 3),
        ("a*b+", 2),
    ],
)
def test_the_size_of_a_pattern_is_known_before_it_is_written_out(pattern, size):
    assert pattern_size(pattern) == size


def test_patterns_never_hold_up_the_check():
    slow = of({**TEXT, "pattern": "^(a|aa)+$"})
    assert misfits({"a": "a" * 4000 + "b"}, slow) == ()
    assert [str(one) for one in misfits({"a": "b"}, slow)] == ["pattern at /properties/a"]


def test_p5_nothing_is_fetched(monkeypatch):
    def refused(*_, **__):
        raise AssertionError("a schema was fetched")

    monkeypatch.setattr("socket.socket.connect", refused)
    monkeypatch.setattr("socket.create_connection", refused)
    for reference in (
        "https://example.com/x",
        "http://127.0.0.1:9/x#/a",
        "file:///etc/passwd",
        "//x",
    ):
        schema = of(
            {"$ref": reference}, **{"$id": "https://example.com/root", "$schema": reference}
        )
        assert takes(loosened_arguments(schema, CAPS).schema, {"a": 1})
        assert misfits({"a": 1}, schema) == ()


def test_a_misfit_names_no_value():
    secret = "swordfish"
    found = misfits(
        {"a": [secret, secret], secret: 1}, of({"uniqueItems": True}, additionalProperties=False)
    )
    assert sorted(map(str, found), reverse=True) == [
        "uniqueItems at /properties/a",
        "additionalProperties at /",
    ]


def _schema(random_, depth):
    """Any schema at all: words of all dialects, values of all kinds."""
    words = [
        (
            "type",
            lambda: random_.choice(["string", "OBJECT", "int", ["array", "null"], "foo", None, 3]),
        ),
        (
            "properties",
            lambda: {random_.choice("abc"): _schema(random_, depth - 1) for _ in range(2)},
        ),
        (
            "items",
            lambda: random_.choice([_schema(random_, depth - 1), [_schema(random_, depth - 1)]]),
        ),
        ("anyOf", lambda: [_schema(random_, depth - 1) for _ in range(random_.randrange(3))]),
        ("oneOf", lambda: [_schema(random_, depth - 1) for _ in range(2)]),
        ("allOf", lambda: [_schema(random_, depth - 1)]),
        ("not", lambda: _schema(random_, depth - 1)),
        ("required", lambda: random_.choice([["a"], "a", True, ["zz", 3]])),
        ("enum", lambda: random_.choice([["a", 1, None], [], "a", [{"a": 1}]])),
        ("const", lambda: random_.choice([1, "x", None])),
        ("pattern", lambda: random_.choice(["^a+$", "(?=a)", "(", "\\bx", 4])),
        ("additionalProperties", lambda: random_.choice([False, True, "false", None, {}, [], 3])),
        ("minItems", lambda: random_.choice([1, "2", -1, 1e9, True])),
        ("maxLength", lambda: random_.choice([0, 5, "x", 3.5])),
        ("minimum", lambda: random_.choice([0, "3", 1e300, -5])),
        ("maximum", lambda: random_.choice([4, 1e300])),
        ("exclusiveMinimum", lambda: random_.choice([True, 2, False])),
        ("uniqueItems", lambda: True),
        (
            "$ref",
            lambda: random_.choice(["#", "#/properties/a", "#/$defs/a", "http://x/y", "a", 3]),
        ),
        ("$defs", lambda: {"a": _schema(random_, depth - 1)}),
        ("propertyNames", lambda: random_.choice([{"enum": ["a"]}, {"pattern": "^a"}, True, 3])),
        (
            "patternProperties",
            lambda: {random_.choice(["^a", "(?!b)", "("]): _schema(random_, depth - 1)},
        ),
        ("nullable", lambda: True),
        ("format", lambda: random_.choice(["email", "int32", 3])),
        ("if", lambda: _schema(random_, depth - 1)),
        ("then", lambda: _schema(random_, depth - 1)),
        ("dependencies", lambda: {"a": random_.choice([["b"], {"required": ["c"]}])}),
    ]
    if depth <= 0:
        return random_.choice([{}, True, False, {"type": "string"}, None, "string"])
    return {word: make() for word, make in random_.sample(words, random_.randrange(1, 5))}


def test_law_13_no_schema_at_all_refuses_its_tool():
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    random_ = random.Random(seed)
    for _ in range(60):
        schema = _schema(random_, 3)
        held = loosened_arguments(schema, CAPS)
        text = f"%llguidance {{}}\nstart: {json_rule(held.schema)}\n"
        assert not LLMatcher(BYTES, text, log_level=0).is_error(), schema
        loosened(schema, CAPS)
        misfits({"a": ["x", {"a": 1}], "b": None}, schema)


def test_a_schema_that_asks_itself_without_end_is_not_called_a_misfit():
    """At Python's own limit jsonschema's dictionaries panic, which no `except Exception` sees."""
    endless = {"$defs": {"a": {"not": {"$ref": "#/$defs/a"}, "type": "object"}}}

    def asked_at(depth):
        return asked_at(depth - 1) if depth else misfits({"a": 1}, {**endless, "$ref": "#/$defs/a"})

    assert {asked_at(depth) for depth in range(60)} == {()}


def test_a_deep_document_is_checked_all_the_same():
    tree = {"type": "object", "properties": {"in": {"$ref": "#"}, "leaf": {"type": "integer"}}}
    for leaf, found in ((1, ()), ("x", ("type at /properties/leaf",))):
        document = {"leaf": leaf}
        for _ in range(40):
            document = {"in": document}
        assert tuple(str(one) for one in misfits(document, tree)) == found
