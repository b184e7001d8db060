"""Hundreds of tools, as servers have them: one grammar holds what it can, nothing is refused."""

import json
from dataclasses import replace

import pytest
from byte_grammars import takes
from odd_schemas import TEXT, of

from llm_mlx_promptcache.chat import grammar as grammar_module
from llm_mlx_promptcache.chat.forms import CallLayout, Form, Hole, Keys, Tags
from llm_mlx_promptcache.chat.grammar import told_unheld, tool_grammar
from llm_mlx_promptcache.chat.hand_forms import GENERIC
from llm_mlx_promptcache.chat.tool_sets import BUDGETS, within

BARE = Form(
    CallLayout.OBJECT,
    ('{"name": "', Hole.NAME, '", "parameters": ', Hole.ARGUMENTS, "}"),
    keys=Keys(arguments=("parameters",)),
    parallel=False,
)
TAGGED = Form(
    CallLayout.TAGS,
    ("<tool_call>\n<function=", Hole.NAME, ">\n", Hole.ARGUMENTS, "</function>\n</tool_call>"),
    tags=Tags("<parameter=", ">\n", "\n</parameter>\n", ">\n", "\n</parameter>\n", ""),
)


def tool(name, parameters):
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def call(name, arguments):
    inner = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{inner}\n</tool_call>"


def nested(depth):
    found = TEXT
    for _ in range(depth):
        found = {"type": "object", "properties": {"a": found, "b": {"type": ["string", "null"]}}}
    return found


def served(count):
    """Tools as servers have them: recursive filters, long choices, deep objects, files."""
    node = {"type": "object", "properties": {"op": {"enum": ["and", "or"]}}}
    node["properties"]["of"] = {"type": "array", "items": {"$ref": "#/$defs/Node"}}
    kinds = [
        of({"$ref": "#/$defs/Node"}, **{"$defs": {"Node": node}}),
        of({"enum": [f"Region/City {number}" for number in range(400)]}),
        of(nested(8)),
        of({"anyOf": [{**TEXT, "pattern": "^[a-z0-9-]{1,63}$"}, {"type": "integer"}]}),
        {"type": "object", "properties": {"path": TEXT, "content": TEXT}, "required": ["path"]},
    ]
    return [tool(f"server__tool_{at}", kinds[at % len(kinds)]) for at in range(count)]


def test_law_14_hundreds_of_tools_refuse_nothing_and_the_small_ones_are_held():
    tools = served(600)
    grammar = tool_grammar(tools, True, GENERIC, calls=2)
    assert takes(grammar, call("server__tool_4", {"path": "a", "content": "b" * 5000})) == "whole"
    assert takes(grammar, call("server__tool_4", {"path": 3})) != "whole"
    assert (
        takes(grammar, call("server__tool_0", {"a": {"op": "or", "of": [{"op": "and"}]}}))
        == "whole"
    )
    loose = {one.tool for one in grammar.unheld}
    assert loose
    assert {int(name.rpartition("_")[2]) % 5 for name in loose} == {1}
    assert takes(grammar, call(min(loose), {"a": {"anything": [1]}})) == "whole"
    assert not grammar.holds_arguments
    (told,) = told_unheld(grammar)
    assert told.startswith(f"the schemas of {len(loose)} tools (server__tool_")
    assert "more than can be held together" in told


@pytest.mark.parametrize("form", [GENERIC, TAGGED])
def test_law_14_marks_that_are_tokens_of_the_model_loosen_no_schema(form):
    marks = ("<tool_call>", 151657), ("</tool_call>", 151658)
    tools = [tool("t", of({"type": "integer"})), tool("none", {"type": "object"})]
    plain, marked = (
        tool_grammar(tools, True, replace(form, special=special)) for special in ((), marks)
    )
    assert "<[151657]>" in marked.text
    assert plain.unheld == marked.unheld == ()
    rules = [line for line in plain.text.splitlines() if line.startswith("arguments")]
    assert rules == [line for line in marked.text.splitlines() if line.startswith("arguments")]


def test_what_the_engine_refuses_together_is_loosened_until_it_takes_it(monkeypatch):
    # Its own limit lies beyond our budgets, but for schemas that nobody has thought of yet.
    real = grammar_module.refusal
    tried = []

    def refused(text):
        tried.append(len(text))
        return "too big" if len(text) > 200_000 else real(text)

    monkeypatch.setattr(grammar_module, "refusal", refused)
    grammar = tool_grammar(served(120), True, GENERIC)
    assert len(tried) == 2
    assert tried[0] > 200_000 >= tried[1]
    assert takes(grammar, call("server__tool_4", {"path": "a"})) == "whole"
    assert takes(grammar, call("server__tool_4", {"path": 3})) != "whole"
    loose = min(one.tool for one in grammar.unheld)
    assert takes(grammar, call(loose, {"a": 3})) == "whole"


def test_tagged_calls_of_tools_that_are_too_large_take_any_argument(monkeypatch):
    monkeypatch.setattr(grammar_module, "BUDGETS", (0,))
    marks = ("<call><function=", Hole.NAME, ">\n", Hole.ARGUMENTS, "</function></call>")
    tags = Tags("<parameter=", ">\n", "\n</parameter>\n", ">\n", "\n</parameter>\n", "")
    grammar = tool_grammar(served(1), True, Form(CallLayout.TAGS, marks, tags=tags))
    said = "<parameter=any>\n{x}\n</parameter>\n"
    assert takes(grammar, f"<call><function=server__tool_0>\n{said}</function></call>") == "whole"


def test_a_set_of_tools_is_looked_at_once(monkeypatch):
    asked = []
    real = grammar_module.refusal
    monkeypatch.setattr(grammar_module, "refusal", lambda text: asked.append(1) or real(text))
    first = tool_grammar(served(31), True, GENERIC)
    assert len(asked) == 1
    assert tool_grammar(served(31), True, GENERIC) is first
    assert len(asked) == 1


def test_what_is_left_out_to_hold_the_rest_is_the_largest():
    functions = [one["function"] for one in served(10)]
    assert within(functions, BUDGETS[0]).unheld == ()
    some = within(functions, 300)
    assert some.unheld == ("server__tool_1", "server__tool_6")
    assert [one["name"] for one in some.functions] == [one["name"] for one in functions]
    assert len(within(functions, 0).unheld) == 10
    assert within([{"name": "none"}], 0).unheld == ()


def test_bare_calls_of_many_tools_stand_beside_a_document():
    grammar = tool_grammar(served(300), None, BARE, schema=of({"type": "integer"}))
    assert takes(grammar, '{"a": 4}') == "whole"
    assert takes(grammar, '{"name": "server__tool_4", "parameters": {"path": "x"}}') == "whole"
    assert (
        takes(grammar, '{"name": "server__tool_0", "parameters": {"a": {"of": [{}]}}}') == "whole"
    )
    for other in ('{"a": "x"}', '{"name": "nobody", "parameters": {}}', "Well"):
        assert takes(grammar, other) != "whole"


def test_bare_calls_and_documents_keep_their_own_definitions():
    node = {"type": "object", "properties": {"n": {"$ref": "#/$defs/N"}}}
    tools = [tool("t", of({"$ref": "#/$defs/N"}, **{"$defs": {"N": node}}))]
    document = of({"$ref": "#/$defs/N"}, **{"$defs": {"N": {"type": "integer"}}})
    grammar = tool_grammar(tools, None, BARE, schema=document)
    assert takes(grammar, '{"a": 4}') == "whole"
    assert takes(grammar, '{"a": {}}') != "whole"
    assert takes(grammar, '{"name": "t", "parameters": {"a": {"n": {"n": {}}}}}') == "whole"
    assert takes(grammar, '{"name": "t", "parameters": {"a": 4}}') != "whole"
    # A document may begin as a call does.
    named = {"type": "object", "properties": {"name": TEXT, "age": {"type": "integer"}}}
    grammar = tool_grammar(tools, None, BARE, schema={**named, "required": ["name"]})
    assert takes(grammar, '{"name": "Ada", "age": 3}') == "whole"
    assert takes(grammar, '{"name": "t", "parameters": {"a": {}}}') == "whole"
