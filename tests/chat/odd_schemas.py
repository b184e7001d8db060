"""Tools' schemas as programs and people write them, each with arguments that it takes.

Name -> (properties of the tool's parameters or the whole, arguments that fit, arguments that break
a rule no grammar can hold, or None).
"""

TEXT = {"type": "string"}
EMAIL = (
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@"
    r"([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
)


def of(schema, **more):
    """Parameters with the one property `a`, which must be there."""
    return {"type": "object", "properties": {"a": schema}, "required": ["a"], **more}


ODD = {
    "set of strings": (
        of({"type": "array", "items": TEXT, "uniqueItems": True}),
        {"a": ["x", "y"]},
        {"a": ["x", "x"]},
    ),
    "set of literals": (
        of({"type": "array", "items": {"enum": ["x", "y"]}, "uniqueItems": True}),
        {"a": ["x", "y"]},
        {"a": ["x", "x"]},
    ),
    "names from a list": (
        of(
            {
                "type": "object",
                "propertyNames": {"enum": ["x", "y"]},
                "additionalProperties": {"type": "integer"},
            }
        ),
        {"a": {"x": 1}},
        None,
    ),
    "names of a definition": (
        of(
            {"type": "object", "propertyNames": {"$ref": "#/$defs/E"}},
            **{"$defs": {"E": {"enum": ["x"]}}},
        ),
        {"a": {"x": [1]}},
        None,
    ),
    "names by a look-ahead": (
        of({"type": "object", "propertyNames": {"pattern": "^(?!x)"}}),
        {"a": {"y": 1}},
        {"a": {"x": 1}},
    ),
    "an e-mail of zod": (of({**TEXT, "pattern": EMAIL}), {"a": "a@b.cd"}, {"a": "a..b@c"}),
    "the edge of a word": (of({**TEXT, "pattern": r"\bfoo\b"}), {"a": "a foo"}, {"a": "food"}),
    "a reference back": (of({**TEXT, "pattern": r"^(a|b)\1$"}), {"a": "aa"}, {"a": "ab"}),
    "counts of counts": (of({**TEXT, "pattern": "((a{100}){100}){100}"}), {"a": "b"}, None),
    "not null": (of({"not": {"type": "null"}}), {"a": 1}, None),
    "not this value": (of({"type": "integer", "not": {"const": 3}}), {"a": 4}, {"a": 3}),
    "not a thing": (of({"not": {}}), {"a": {"b": []}}, {"a": 1}),
    "one of two that overlap": (
        of({"oneOf": [{"type": "integer"}, {"type": "number"}]}),
        {"a": 1.5},
        {"a": 1},
    ),
    "definitions beside the reference": (
        of({"$defs": {"F": {"type": "integer"}}, "$ref": "#/$defs/F"}),
        {"a": 1},
        None,
    ),
    "a definition elsewhere": (
        of(
            {"$ref": "#/components/schemas/F"},
            components={"schemas": {"F": {"type": "integer"}}},
        ),
        {"a": 1},
        None,
    ),
    "if and then": (
        {
            "type": "object",
            "properties": {"a": TEXT, "b": TEXT},
            "if": {"properties": {"a": {"const": "x"}}},
            "then": {"required": ["b"]},
        },
        {"a": "y"},
        {"a": "x"},
    ),
    "declared in then alone": (
        {
            "type": "object",
            "properties": {"a": {"enum": ["x", "y"]}},
            "required": ["a"],
            "if": {"properties": {"a": {"const": "x"}}},
            "then": {"properties": {"b": {"type": "number"}}, "required": ["b"]},
            "else": {"if": {"properties": {"c": {"const": 1}}}, "then": {"required": ["d"]}},
        },
        {"a": "x", "b": 1.5},
        {"a": "x"},
    ),
    "named in the condition of a condition": (
        {
            "type": "object",
            "properties": {"a": TEXT},
            "if": {"required": ["a"]},
            "then": {"if": {"properties": {"c": {"const": 1}}}, "then": {"required": ["d"]}},
        },
        {"a": "x", "c": 2, "d": [None]},
        {"a": "x"},
    ),
    "declared beside alone": (
        {
            "type": "object",
            "properties": {"a": TEXT},
            "dependencies": {
                "a": {
                    "oneOf": [
                        {"properties": {"a": {"const": "x"}, "b": {"type": "integer"}}},
                        {"properties": {"a": {"const": "y"}, "b": {"$ref": "#/definitions/B"}}},
                    ],
                    "required": ["b"],
                }
            },
            "definitions": {"B": {"type": "boolean"}},
        },
        {"a": "y", "b": True},
        {"a": "y", "b": 1},
    ),
    "needed beside and not declared": (
        {"type": "object", "properties": {"a": TEXT}, "dependentRequired": {"a": ["b"]}},
        {"a": "x", "b": [1]},
        {"a": "x"},
    ),
    "steps of a tenth": (
        of({"type": "array", "items": {"type": "number", "multipleOf": 0.1}, "uniqueItems": True}),
        {"a": [0.3, 19.9, 12]},
        {"a": [0.3, 0.3]},
    ),
    "a whole address of a relative name": (
        of(
            {"$ref": "https://example.com/s/item.json"},
            **{
                "$id": "https://example.com/s/root.json",
                "$defs": {"I": {"$id": "item.json", "type": "integer"}},
            },
        ),
        {"a": 1},
        None,
    ),
    "needed beside": (
        {
            "type": "object",
            "properties": {"a": TEXT, "b": TEXT},
            "dependentRequired": {"a": ["b"]},
        },
        {"a": "x", "b": "y"},
        {"a": "x"},
    ),
    "needed beside, draft 7": (
        {"type": "object", "properties": {"a": TEXT, "b": TEXT}, "dependencies": {"a": ["b"]}},
        {"a": "x", "b": "y"},
        {"a": "x"},
    ),
    "contains": (
        of({"type": "array", "items": TEXT, "contains": {"const": "x"}}),
        {"a": ["x"]},
        {"a": ["y"]},
    ),
    "types in capitals": (
        {"type": "OBJECT", "properties": {"a": {"type": "STRING"}}, "required": ["a"]},
        {"a": "x"},
        None,
    ),
    "types of Python": (
        of({"type": "dict", "properties": {"b": {"type": "int"}}}),
        {"a": {"b": 1}},
        None,
    ),
    "a type that nobody knows": (of({"type": "foo"}), {"a": [1]}, None),
    "elsewhere on the net": (of({"$ref": "https://example.com/x.json"}), {"a": 1}, None),
    "nowhere": (of({"$ref": "#/$defs/Lost"}), {"a": 1}, None),
    "no types": ({"properties": {"a": {"description": "Anything."}}}, {"a": [None]}, None),
    "nullable": (of({**TEXT, "nullable": True}), {"a": None}, None),
    "nullable reference": (
        of({"$ref": "#/$defs/E", "nullable": True}, **{"$defs": {"E": {"enum": ["x"]}}}),
        {"a": None},
        None,
    ),
    "bounds of draft 4": (
        of({"type": "integer", "minimum": 0, "exclusiveMinimum": True}),
        {"a": 1},
        None,
    ),
    "a tuple of draft 4": (
        of({"type": "array", "items": [TEXT, {"type": "integer"}]}),
        {"a": ["x", 1]},
        None,
    ),
    "required in the property": (
        {"type": "object", "properties": {"a": {**TEXT, "required": True}}},
        {"a": "x"},
        None,
    ),
    "words for yes and no": (of(TEXT, additionalProperties="false"), {"a": "x"}, None),
    "no more, by null": (of(TEXT, additionalProperties=None), {"a": "x"}, None),
    "numbers as text": (of({**TEXT, "minLength": "2", "maxLength": 4.0}), {"a": "xy"}, None),
    "choices as text": (of({"type": "integer", "enum": ["1", "2"]}), {"a": "1"}, None),
    "formats of OpenAPI": (of({"type": "integer", "format": "int64"}), {"a": 1}, None),
    "at least one": (
        {"type": "object", "properties": {"a": TEXT, "b": TEXT}, "minProperties": 1},
        {"b": "x"},
        None,
    ),
    "patterns that meet": (
        {"type": "object", "patternProperties": {"^S_": TEXT, "_x$": {"maxLength": 3}}},
        {"S_x": "abc"},
        {"S_x": "abcd"},
    ),
    "nothing unevaluated": (of(TEXT, unevaluatedProperties=False), {"a": "x"}, None),
    "all of a definition": (
        {
            "allOf": [
                {"$ref": "#/$defs/F"},
                {"type": "object", "properties": {"b": TEXT}, "required": ["b"]},
            ],
            "$defs": {"F": of({"type": "integer"})},
        },
        {"a": 1, "b": "x"},
        None,
    ),
    "itself": (
        of({"anyOf": [{"$ref": "#"}, {"type": "null"}]}),
        {"a": {"a": None}},
        None,
    ),
    "itself without an end": (of({"$ref": "#"}), {"a": 1}, None),
    "itself beside more": (
        of(
            {"$ref": "#/$defs/N", "properties": {"n": {"$ref": "#/$defs/N"}}},
            **{"$defs": {"N": {"type": "object", "properties": {"n": {"$ref": "#/$defs/N"}}}}},
        ),
        {"a": {"n": {}}},
        None,
    ),
    "more than most": (of({"type": "number", "minimum": -1e308, "maximum": 1e308}), {"a": 1}, None),
    "nothing between": (of({"type": "integer", "minimum": 3, "maximum": 1}), {"a": 1}, {"a": 0}),
    "never": (of(False), {"a": 1}, None),
    "a word for a schema": (of("string"), {"a": 1}, None),
    "a list for properties": ({"type": "object", "properties": ["a"]}, {"a": 1}, None),
    "no object": ({"type": "string"}, {"a": 1}, None),
    "no schema": ([], {"a": 1}, None),
    "in sixty objects": (None, None, None),
}
_DEEP, _DEEP_VALUE = TEXT, "x"
for _ in range(60):
    _DEEP, _DEEP_VALUE = of(_DEEP), {"a": _DEEP_VALUE}
ODD["in sixty objects"] = (_DEEP, _DEEP_VALUE, None)
