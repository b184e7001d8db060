"""Schemas whose every instance would hold another one are told from those that end."""

import random
from typing import Any

import pytest
from pydantic import BaseModel

from llm_mlx_promptcache.chat import schema_instances
from llm_mlx_promptcache.chat.grammar import GrammarError, check_tools_end, schema_grammar
from llm_mlx_promptcache.chat.schema_instances import endless_place

TEXT = {"type": "string"}
NODE = {"$ref": "#/$defs/N"}


def of(node: Any, **more: Any) -> dict[str, Any]:
    """A schema that is what its one definition is, or holds it."""
    return {**(more or NODE), "$defs": {"N": node}}


def holding(part: Any, *required: str) -> dict[str, Any]:
    """An object with a text and a part."""
    made = {"type": "object", "properties": {"text": TEXT, "next": part}}
    return {**made, "required": list(required)}


ENDLESS = {
    "itself": ({"$ref": "#"}, ""),
    "a property of itself": (holding({"$ref": "#"}, "next"), "/properties/next"),
    "a definition of itself": (of(holding(NODE, "text", "next")), "/$defs/N/properties/next"),
    "without a type": (
        of({"properties": {"next": NODE}, "required": ["next"]}),
        "/$defs/N/properties/next",
    ),
    "required further in": (
        of(holding(NODE, "next"), type="object", properties={"a": NODE}, required=["a"]),
        "/$defs/N/properties/next",
    ),
    "an item of itself": (of({"type": "array", "items": NODE, "minItems": 1}), "/$defs/N/items"),
    "a first item": (
        of({"type": "array", "prefixItems": [TEXT, NODE], "minItems": 2}),
        "/$defs/N/prefixItems/1",
    ),
    "what it contains": (of({"type": "array", "contains": NODE}), "/$defs/N/contains"),
    "by all": (of({"allOf": [{"type": "object"}, holding(NODE, "next")]}), None),
    "by any": (of({"anyOf": [holding(NODE, "next"), NODE]}), None),
    "by one": (of({"oneOf": [holding(NODE, "next"), holding(NODE, "next")]}), None),
    "null where null is none": (of(holding({"allOf": [NODE, {"type": "object"}]}, "next")), None),
    "as many as there must be": (
        of(
            {
                "type": "object",
                "properties": {"next": NODE},
                "minProperties": 1,
                "additionalProperties": False,
            }
        ),
        "/$defs/N/properties/next",
    ),
    "what has no name": (
        of({"type": "object", "required": ["a"], "additionalProperties": NODE}),
        "/$defs/N/additionalProperties",
    ),
    "one through another": (
        {
            **NODE,
            "$defs": {"N": holding({"$ref": "#/$defs/M"}, "next"), "M": holding(NODE, "next")},
        },
        "/$defs/M/properties/next",
    ),
    "by an anchor": (holding({"$dynamicRef": "#"}, "next"), "/properties/next"),
}
ENDING = {
    "no reference": holding(TEXT, "next"),
    "an optional one": of(holding(NODE, "text")),
    "one or null": of(holding({"anyOf": [NODE, {"type": "null"}]}, "next")),
    "OpenAPI's null": of(holding({"nullable": True, **NODE}, "next")),
    "a list that may be empty": of(holding({"type": "array", "items": NODE}, "next")),
    "a map": of(holding({"type": "object", "additionalProperties": NODE}, "next")),
    "a tree": of({"oneOf": [TEXT, holding(NODE, "next")]}),
    "a kind of several": of({**holding(NODE, "next"), "type": ["object", "string"]}),
    "a listed value": of({**holding(NODE, "next"), "const": {"next": {}}}),
    "an endless one that nothing needs": of(
        holding(NODE, "next"), type="object", properties={"a": NODE}, required=[]
    ),
    "a first item, and fewer will do": of({"type": "array", "prefixItems": [NODE]}),
    "what need not be contained": of({"type": "array", "contains": NODE, "minContains": 0}),
    "nothing at all": of(False),
    "nothing, wherever it is needed": of(holding(False, "next")),
    "a reference to nowhere": holding({"$ref": "#/$defs/none"}, "next"),
}


@pytest.mark.parametrize("case", ENDLESS)
def test_l9_what_has_no_instance_that_ends_is_named_by_its_place(case):
    schema, place = ENDLESS[case]
    found = endless_place(schema)
    assert found is not None
    assert place in (None, found)
    with pytest.raises(GrammarError, match="schema has no instance that ends") as told:
        schema_grammar(schema)
    assert f"at {found or '/'} must hold" in str(told.value)
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize("case", ENDING)
def test_l9_what_has_one_is_taken(case):
    assert endless_place(ENDING[case]) is None


def test_l9_arguments_are_objects_whatever_else_their_schema_takes():
    tree = {**holding(NODE, "next"), "type": ["object", "null"], "$defs": {"N": TEXT}}
    tree["$defs"] = {"N": {**holding(NODE, "next")}}
    assert endless_place(tree) is None  # null is a document
    assert endless_place(tree, is_arguments=True) == "/$defs/N/properties/next"
    tools = [{"type": "function", "function": {"name": "grow", "parameters": tree}}]
    with pytest.raises(GrammarError, match="the schema of the tool grow has no instance that ends"):
        check_tools_end(tools)
    check_tools_end([{"type": "function", "function": {"name": "rest"}}])


class Tree(BaseModel):
    """A tree as people write it."""

    name: str
    children: list["Tree"]
    twin: "Tree | None" = None


def test_a_tree_of_pydantics_is_a_grammar():
    assert endless_place(Tree.model_json_schema()) is None
    assert schema_grammar(Tree.model_json_schema()).unheld == ()


def test_l9_the_work_is_bounded(monkeypatch):
    counted = []
    monkeypatch.setattr(
        schema_instances,
        "_kinds_of",
        lambda *given, inner=schema_instances._kinds_of: (counted.append(1), inner(*given))[1],
    )
    # A chain in the order that takes most rounds, and objects that wait for each of its links.
    names = [f"d{n}" for n in range(700)]
    waits = {"type": "object", "required": names, "properties": {n: _to(n) for n in names}}
    chain = {n: holding(_to(f"d{i + 1}"), "next") for i, n in enumerate(names[:-1])}
    chain[names[-1]] = holding(_to("d0"), "text")
    for definitions in (chain, dict(reversed(chain.items()))):
        wide = {"anyOf": [waits] * 3, "$defs": definitions}
        counted.clear()
        assert endless_place(wide) is None
        assert len(counted) < schema_instances._MOST_WORK
    monkeypatch.setattr(schema_instances, "_MOST_WORK", 10)
    schema_instances._endless_place.cache_clear()
    assert endless_place(ENDLESS["a definition of itself"][0]) is None


def _to(name):
    return {"$ref": f"#/$defs/{name}"}


def test_l9_random_schemas_end_where_an_instance_can_be_built():
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    random_ = random.Random(seed)
    told = []
    for _ in range(150):
        definitions = {f"d{n}": _random(random_, 2) for n in range(4)}
        schema = {"$ref": "#/$defs/d0", "$defs": definitions}
        builds = _builds(definitions["d0"], definitions, 12)
        told.append(endless_place(schema) is None)
        assert told[-1] == builds, schema
    assert 10 < sum(told) < 140


def _random(random_, depth):
    if depth == 0:
        return random_.choice([TEXT, *(_to(f"d{n}") for n in range(4)), _to("d0")])
    kind = random_.choice(["object", "object", "array", "anyOf", "allOf"])
    inner = [_random(random_, depth - 1) for _ in range(2)]
    if kind == "object":
        required = random_.sample(["a", "b"], random_.randrange(3))
        return {
            "type": "object",
            "properties": dict(zip("ab", inner, strict=True)),
            "required": required,
        }
    if kind == "array":
        return {"type": "array", "items": inner[0], "minItems": random_.randrange(2)}
    if kind == "allOf":
        return {"allOf": inner[:1]}
    return {"anyOf": inner}


def _builds(schema, definitions, depth):
    """True if an instance of so few levels can be put together: the naive way."""
    if depth == 0:
        return False
    if "$ref" in schema:
        return _builds(definitions[schema["$ref"][8:]], definitions, depth - 1)
    if "anyOf" in schema:
        return any(_builds(one, definitions, depth) for one in schema["anyOf"])
    if "allOf" in schema:
        return all(_builds(one, definitions, depth) for one in schema["allOf"])
    if schema["type"] == "object":
        wanted = [schema["properties"][name] for name in schema["required"]]
        return all(_builds(one, definitions, depth) for one in wanted)
    if schema["type"] == "array" and schema["minItems"]:
        return _builds(schema["items"], definitions, depth)
    return True
