"""Generated text becomes text, reasoning and calls, however it is cut into pieces."""

import importlib
import json
import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_mlx_promptcache.chat.answer_parser import (
    AnswerParser,
    CallArguments,
    CallName,
    CutShort,
    ReasoningDelta,
    TextDelta,
)
from llm_mlx_promptcache.chat.call_forms import Thinking, plain_turn, thinking_of, tool_prompt
from llm_mlx_promptcache.chat.forms import Form, Hole, Layout, Reasoning, Tags
from llm_mlx_promptcache.chat.generated import InvalidCall, ToolCall
from llm_mlx_promptcache.chat.grammar import json_object_grammar, regex_grammar, tool_grammar
from llm_mlx_promptcache.chat.hand_forms import GENERIC, hand_form
from llm_mlx_promptcache.chat.scanning import JsonValue, Marks, outside_strings
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
THINK = Thinking("<think>", "</think>")
OPENED = Thinking("<think>", "</think>", opened=True)
SURE = tool_grammar(TOOLS, True, GENERIC, calls=8)
AUTO = tool_grammar(TOOLS, None, GENERIC, calls=8)


def call(city="Zürich", **more):
    inner = json.dumps({"name": "weather", "arguments": {"city": city, **more}}, ensure_ascii=False)
    return f"<tool_call>\n{inner}\n</tool_call>"


def collect(text, form=GENERIC, tools=TOOLS, whole=True, size=1, **options):
    """Parts and answer of `text`, fed `size` characters at a time."""
    parser = AnswerParser(form, tools, **options)
    parts = []
    for at in range(0, len(text), size):
        parts += parser.feed(text[at : at + size])
    last, answer = parser.finish(whole)
    return [*parts, *last], answer


def joined(parts):
    """What who streams puts together: text, reasoning, and calls as (name, arguments as text)."""
    calls = {part.id: [part.name, ""] for part in parts if isinstance(part, CallName)}
    for part in parts:
        if isinstance(part, CallArguments):
            calls[part.id][1] += part.text
    texts = [
        "".join(p.text for p in parts if isinstance(p, k)) for k in (TextDelta, ReasoningDelta)
    ]
    return texts[0], texts[1], {id: tuple(found) for id, found in calls.items()}


def agrees(parts, answer):
    """What was streamed is what the answer says."""
    text, reasoning, calls = joined(parts)
    assert (text, reasoning) == (answer.text, answer.reasoning)
    assert [(id, name) for id, (name, _) in calls.items()] == [
        (one.id, one.name) for one in answer.calls
    ]
    for one in answer.calls:
        assert json.loads(calls[one.id][1]) == one.arguments
        assert re.fullmatch("call_[0-9a-f]{24}", one.id)
    return [(one.name, dict(one.arguments)) for one in answer.calls]


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("grammar", [None, SURE])
def test_one_call(grammar, size):
    parts, answer = collect(call(days=2), grammar=grammar, size=size)
    assert agrees(parts, answer) == [("weather", {"city": "Zürich", "days": 2})]
    assert answer.text == ""
    assert answer.cut is None


@pytest.mark.parametrize("grammar", [None, AUTO])
def test_text_before_calls_and_several_calls(grammar):
    text = f"Let me look. <tool>\n\n{call('東京')}\n{call('a </tool_call> b')}\n"
    parts, answer = collect(text, grammar=grammar)
    cities = [arguments["city"] for _, arguments in agrees(parts, answer)]
    assert cities == ["東京", "a </tool_call> b"]
    assert answer.text == "Let me look. <tool>"
    assert len({one.id for one in answer.calls}) == 2


def test_arguments_come_as_they_are_made_where_a_grammar_makes_them_sure():
    parser = AnswerParser(GENERIC, TOOLS, grammar=SURE)
    parts = parser.feed('<tool_call>\n{"name": "weather", "arguments": {"city": "Pa')
    assert isinstance(parts[0], CallName)
    assert parts[1].text == '{"city": "Pa'
    assert parser.feed('ris"}')[0].text == 'ris"}'
    assert parser.feed("}\n</tool_call>") == []
    free = AnswerParser(GENERIC, TOOLS)
    assert free.feed('<tool_call>\n{"name": "weather", "arguments": {"city": "Pa') == []


@pytest.mark.parametrize("thinking", [None, THINK])
def test_text_alone_is_shown_as_it_is(thinking):
    text = " A < b, a <too> and {braces}. \n"
    parts, answer = collect(text, thinking=thinking)
    assert answer.text == text
    assert agrees(parts, answer) == []
    parts, answer = collect(call(), tools=(), thinking=thinking)
    assert answer.text == call()


def test_reasoning_is_apart_and_marks_take_their_white_space():
    text = f"<think>\nHm, <tool_call> or not?\n</think>\n\nWell.\n{call('x')}"
    parts, answer = collect(text, thinking=THINK, grammar=AUTO)
    assert agrees(parts, answer) == [("weather", {"city": "x"})]
    assert answer.reasoning == "Hm, <tool_call> or not?"
    assert answer.text == "Well."
    parts, answer = collect("Hm.\n</think>\n\nYes.", thinking=OPENED)
    assert (answer.reasoning, answer.text) == ("Hm.", "Yes.")
    _, answer = collect("The tag <think> opens it.", thinking=THINK)
    assert (answer.reasoning, answer.text) == ("", "The tag <think> opens it.")
    _, answer = collect("\n<think>a", thinking=THINK, tools=(), whole=False)
    assert (answer.reasoning, answer.text, answer.cut) == ("a", "", None)


def test_a_call_from_inside_the_reasoning():
    parts, answer = collect(f"I should look.\n{call('x')}", thinking=OPENED)
    assert agrees(parts, answer) == [("weather", {"city": "x"})]
    assert answer.reasoning == "I should look."


@pytest.mark.parametrize("grammar", [None, AUTO, SURE])
@pytest.mark.parametrize("end", range(1, len(call())))
def test_a_call_that_was_cut_is_no_call(grammar, end):
    _, answer = collect(call()[:end], grammar=grammar, whole=False, size=1000)
    assert answer.calls == ()
    if end < len("<tool_call>"):
        assert (answer.cut is None) == (grammar is not SURE)
    else:
        assert isinstance(answer.cut, CutShort)
        assert answer.text == ""
        with pytest.raises(CutShort, match="raise max_tokens"):
            answer.whole()


def test_whole_calls_before_one_that_was_cut_are_kept_and_the_cut_is_told():
    _, answer = collect(f"{call('a')}\n{call('b')[:30]}", grammar=SURE, whole=False)
    assert [one.arguments["city"] for one in answer.calls] == ["a"]
    assert answer.cut is not None


def test_a_document_that_was_cut_is_told_and_is_searched_for_no_calls():
    for grammar in (json_object_grammar(), regex_grammar("[^b]*b")):
        _, answer = collect('{"a": "<tool_call>', grammar=grammar, whole=False)
        assert answer.text == '{"a": "<tool_call>'
        assert isinstance(answer.cut, CutShort)
    either = tool_grammar(TOOLS, None, GENERIC, schema={"type": "object"})
    text = json.dumps({"a": call()})
    _, answer = collect(text, grammar=either)
    assert (answer.text, answer.calls, answer.cut) == (text, (), None)
    _, answer = collect(text[:9], grammar=either, whole=False)
    assert isinstance(answer.cut, CutShort)


@pytest.mark.parametrize(
    "body",
    [
        "nonsense",
        "",
        "[]",
        '{"name": "weather"',
        '{"name": 3, "arguments": {}}',
        '{"name": "weather", "arguments": [1]}',
        '{"name": "weather", "arguments": {"a": NaN}}',
        '{"name": "weather", "arguments": {"a": "\\ud800"}}',
    ],
)
def test_what_is_no_call_stays_in_the_text(body):
    text = f"Look: <tool_call>{body}</tool_call> So."
    parts, answer = collect(text)
    assert answer.text == text
    assert agrees(parts, answer) == []
    assert answer.unreadable == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{call('x')[: -len('</tool_call>')]}", {"city": "x"}),
        ('<tool_call>{"name": "weather", "arguments": "{}"}</tool_call>', {}),
        ('<tool_call>{"name": "weather"}</tool_call>', {}),
        ('<tool_call>[{"name": "weather", "arguments": {"days": 1e999}}]</tool_call>', None),
        ('{"name": "weather", "parameters": {"city": "x"}}', {"city": "x"}),
        ('\n{ "name" : "weather", "arguments": {"city": "x"}}\n', {"city": "x"}),
    ],
)
def test_calls_that_are_almost_in_form(text, expected):
    parts, answer = collect(text)
    [(name, arguments)] = agrees(parts, answer)
    assert name == "weather"
    assert arguments == expected or (expected is None and arguments["days"] > 1e300)


def test_a_bare_object_is_a_call_only_of_a_tool_there_is():
    for text in ('{"name": "Ada", "age": 3}', '{"name": "weath', '{"names": []}', "{"):
        parts, answer = collect(text)
        assert answer.text == text
        assert agrees(parts, answer) == []


def native(module, vocabulary=(), special=True):
    """A tokenizer whose calls mlx-lm's `module` reads."""
    found = importlib.import_module(f"mlx_lm.tool_parsers.{module}")
    ids = {token: 100 + number for number, token in enumerate(vocabulary)}
    return SimpleNamespace(
        tool_call_start=found.tool_call_start,
        tool_call_end=found.tool_call_end,
        tool_parser=found.parse_tool_call,
        get_vocab=lambda: ids,
        added_tokens_decoder={id: SimpleNamespace(special=special) for id in ids.values()},
    )


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("json_tools", call("x", days=2)),
        (
            "qwen3_coder",
            "<tool_call>\n<function=weather>\n<parameter=city>\nx\n</parameter>\n"
            "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>",
        ),
        (
            "glm47",
            "<tool_call>weather<arg_key>city</arg_key><arg_value>x</arg_value>"
            "<arg_key>days</arg_key><arg_value>2</arg_value></tool_call>",
        ),
        ("mistral", '[TOOL_CALLS]weather[ARGS]{"city": "x", "days": 2}'),
        ("mistral", '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "x", "days": 2}}]'),
        (
            "kimi_k2",
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
            '<|tool_call_argument_begin|>{"city": "x", "days": 2}<|tool_call_end|>'
            "<|tool_calls_section_end|>",
        ),
        ("pythonic", '<|tool_call_start|>[weather(city="x", days=2)]<|tool_call_end|>'),
        ("gemma4", '<|tool_call>call:weather{city:<|"|>x<|"|>,days:2}<tool_call|>'),
    ],
)
def test_native_forms_are_read_by_mlx_lms_parsers(module, text):
    form = form_of(native(module))
    assert form.native
    parts, answer = collect(f"Well. {text}", form)
    assert agrees(parts, answer) == [("weather", {"city": "x", "days": 2})]
    assert answer.text == "Well."
    # Cut anywhere, it is no call; where no mark ends it, only the model's end does.
    for end in range(len(form.start), len(text)):
        _, answer = collect(text[:end], form, whole=False, size=1000)
        assert answer.calls == ()


@pytest.mark.parametrize(
    ("module", "vocabulary", "style"),
    [
        ("json_tools", ["<tool_call>", "</tool_call>"], "json"),
        ("mistral", ["[TOOL_CALLS]", "[ARGS]"], "header"),
        ("mistral", ["[TOOL_CALLS]"], "list"),
        ("qwen3_coder", [], "other"),
    ],
)
def test_what_a_grammar_makes_is_read_as_it_was_made(module, vocabulary, style):
    form = form_of(native(module, vocabulary))
    assert form.style == style
    assert [mark for mark, _ in form.special] == vocabulary
    assert form_of(native(module, vocabulary, special=False)).special == ()
    grammar = tool_grammar(TOOLS, True, form)
    arguments = '{"city": "x"}'
    inner = f'{{"name": "weather", "arguments": {arguments}}}'
    text = {
        "json": f"<tool_call>\n{inner}\n</tool_call>",
        "header": f"[TOOL_CALLS]weather[ARGS]{arguments}",
        "list": f"[TOOL_CALLS][{inner}]",
        "other": call("x"),
    }[style]
    parts, answer = collect(text, form, grammar=grammar)
    assert agrees(parts, answer) == [("weather", {"city": "x"})]
    assert joined(parts)[2][answer.calls[0].id] == ("weather", arguments)


def test_two_sections_without_a_mark_for_their_end():
    form = form_of(native("mistral", ["[TOOL_CALLS]", "[ARGS]"]))
    text = '[TOOL_CALLS]weather[ARGS]{"city": "[TOOL_CALLS]"}[TOOL_CALLS]weather[ARGS]{"city": "b"}'
    parts, answer = collect(text, form)
    assert [found["city"] for _, found in agrees(parts, answer)] == ["[TOOL_CALLS]", "b"]


def test_models_without_a_form_get_the_generic_one_and_marks_of_thinking_are_found():
    none = SimpleNamespace(
        tool_call_start=None, tool_parser=None, think_start=None, think_end=None,
        think_start_tokens=None, think_end_tokens=None,
    )  # fmt: skip
    assert form_of(none) is GENERIC
    assert thinking_of(none, [1]) is None
    some = SimpleNamespace(
        think_start="<t>", think_end="</t>", think_start_tokens=(7, 8), think_end_tokens=(9,)
    )
    for ids, opened in (([7, 8], True), ([7, 8, 3, 9, 4], False), ([3], False), ([9, 7, 8], True)):
        assert thinking_of(some, ids).opened is opened
    # An empty block asks for no thinking; one that lies further back says nothing.
    assert thinking_of(some, [7, 8, 3, 9, 3]).start_ids == ()
    assert thinking_of(some, [7, 8, 9, *range(20, 40)]).start_ids == (7, 8)


def test_the_prompt_lists_tools_in_one_order_and_turns_become_text():
    other = {"type": "function", "function": {"name": "über", "description": "Ä"}}
    prompt = tool_prompt([other, *TOOLS])
    assert prompt == tool_prompt([*TOOLS, other])
    assert prompt.index('"weather"') < prompt.index('"über"')
    assert "<tool_call>" in prompt
    function = {"name": "weather", "arguments": {"city": "Zürich"}}
    turn = {
        "role": "assistant",
        "content": "Hm.",
        "tool_calls": [{"id": "1", "function": function}],
    }
    plain = plain_turn(turn)
    assert plain == {"role": "assistant", "content": f"Hm.\n{call()}"}
    assert agrees(*collect(plain["content"])) == [("weather", {"city": "Zürich"})]
    result = plain_turn(
        {"role": "tool", "content": "sunny", "tool_call_id": "1", "name": "weather"}
    )
    assert result == {"role": "user", "content": "<tool_response>\nsunny\n</tool_response>"}
    assert plain_turn({"role": "user", "content": "x"}) == {"role": "user", "content": "x"}


def test_a_call_nested_too_deep_is_an_error_once_it_was_begun():
    text = call().replace('"Zürich"', "[" * 100 + "]" * 100)
    _, answer = collect(text, grammar=SURE)
    assert answer.calls == ()
    assert isinstance(answer.cut, CutShort)
    _, answer = collect(text)
    assert (answer.text, answer.cut) == (text, None)


def test_nothing_of_an_answer_is_in_a_repr_or_error():
    _, answer = collect(f"secret {call('secret')} {call('secret')[:40]}", whole=False)
    assert "secret" not in repr(answer) + str(answer.cut)
    assert isinstance(answer.calls[0], ToolCall)


texts = st.text(
    st.sampled_from(list('<>/"\\{}[]: \nabtoolcethinkz_é')), max_size=20
) | st.sampled_from([call("x"), call('"</tool_call>'), "<think>", "</think>", "<tool_call>", "</"])


@given(st.lists(texts, max_size=6).map("".join), st.integers(1, 9), st.booleans(), st.booleans())
def test_how_text_is_cut_into_pieces_changes_nothing(text, size, thinks, whole):
    thinking = THINK if thinks else None
    parts, answer = collect(text, size=size, thinking=thinking, whole=whole)
    once_parts, once = collect(text, size=1000, thinking=thinking, whole=whole)
    assert agrees(parts, answer) == agrees(once_parts, once)
    assert (answer.text, answer.reasoning) == (once.text, once.reasoning)
    assert (answer.cut is None) == (once.cut is None)


@given(st.text(st.sampled_from(list("ab<>")), max_size=12))
def test_marks_are_found_where_they_stand_first(text):
    before, mark, after = Marks(["<a>", "<ab"]).split(text)
    assert before + (mark or "") + after == text
    assert (mark is None) == ("<a>" not in text and "<ab" not in text)


@given(st.recursive(st.text() | st.none(), lambda inner: st.lists(inner), max_leaves=5), st.text())
def test_a_json_value_ends_at_its_last_bracket(value, more):
    text = json.dumps([value])
    follower = JsonValue()
    assert "".join(follower.feed(character) for character in text + more) == text
    assert outside_strings(text + "<end>", "<end>") == len(text)
