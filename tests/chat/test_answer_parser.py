"""Generated text becomes text, reasoning and calls, however it is cut into pieces."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parsed_answers import OPENED, SURE, THINK, TOOLS, agrees, call, collect

from llm_mlx_promptcache.chat.answer_parser import AnswerParser
from llm_mlx_promptcache.chat.answer_parts import (
    CallName,
    CutShort,
    TextDelta,
)
from llm_mlx_promptcache.chat.call_forms import Thinking, plain_turn, thinking_of, tool_prompt
from llm_mlx_promptcache.chat.forms import Reasoning
from llm_mlx_promptcache.chat.generated import InvalidCall, ToolCall
from llm_mlx_promptcache.chat.grammar import json_object_grammar, regex_grammar, tool_grammar
from llm_mlx_promptcache.chat.hand_forms import GENERIC, hand_form
from llm_mlx_promptcache.chat.scanning import Marks


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("grammar", [None, SURE])
def test_one_call(grammar, size):
    parts, answer = collect(call(days=2), grammar=grammar, size=size)
    assert agrees(parts, answer) == [("weather", {"city": "Zürich", "days": 2})]
    assert answer.text == ""
    assert answer.cut is None


def test_text_before_calls_and_several_calls():
    text = f"Let me look. <tool>\n\n{call('東京')}\n{call('a </tool_call> b')}\n"
    parts, answer = collect(text)
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
    parts, answer = collect(text, thinking=THINK)
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


@pytest.mark.parametrize("grammar", [None, SURE])
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
        '{"name": 3, "arguments": {}}',
    ],
)
def test_what_is_no_call_stays_in_the_text(body):
    text = f"Look: <tool_call>{body}</tool_call> So."
    parts, answer = collect(text)
    assert answer.text == text
    assert agrees(parts, answer) == []
    assert answer.invalid == ()


@pytest.mark.parametrize(
    ("body", "name", "error"),
    [
        ('{"name": "weather"', "weather", "its JSON does not end"),
        ('{"name": "weather", "arguments": {"a": }}', "weather", "its JSON can't be read"),
        ('{"name": "weather", "arguments": [1]}', "weather", "its arguments can't be read"),
        ('{"name": "weather", "arguments": {"a": NaN}}', "weather", "its JSON can't be read"),
        ('{"name": "weather", "arguments": {"a": "\\ud800"}}', "weather", "half a surrogate"),
        ('{"name": "whether", "arguments": {}}', "whether", "no tool has this name"),
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_a_call_that_can_not_be_made_is_told_with_its_text(body, name, error, size):
    parts, answer = collect(f"Look: <tool_call>{body}</tool_call> So.", size=size)
    assert answer.text == "Look:So."
    assert agrees(parts, answer) == []
    [invalid] = answer.invalid
    assert parts[-2:] == [invalid, TextDelta("So.")] or size == 1
    assert [part for part in parts if isinstance(part, InvalidCall)] == [invalid]
    assert (invalid.name, invalid.text) == (name, body)
    assert invalid.arguments == ({} if name == "whether" else None)
    assert error in invalid.error
    assert re.fullmatch("call_[0-9a-f]{24}", invalid.id)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{call('x')[: -len('</tool_call>')]}", {"city": "x"}),
        (
            '<tool_call>{"name": "weather", "arguments": "{\\"city\\": 1}"}</tool_call>',
            {"city": "1"},
        ),
        ('<tool_call>{"name": "time", "arguments": "{}"}</tool_call>', {}),
        ('<tool_call>{"name": "time"}</tool_call>', {}),
        ('<tool_call>[{"name": "time", "arguments": {"days": 1e99}}]</tool_call>', {"days": 1e99}),
        ('{"name": "weather", "parameters": {"city": "x"}}', {"city": "x"}),
        ('\n{ "name" : "weather", "arguments": {"city": "x"}}\n', {"city": "x"}),
    ],
)
def test_calls_that_are_almost_in_form(text, expected):
    time = {"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}}
    parts, answer = collect(text, tools=[*TOOLS, time])
    [(name, arguments)] = agrees(parts, answer)
    assert f'"{name}"' in text
    assert arguments == expected


def test_a_bare_object_is_a_call_only_of_a_tool_there_is():
    for text in ('{"name": "Ada", "age": 3}', '{"name": "weath', '{"names": []}', "{"):
        parts, answer = collect(text)
        assert answer.text == text
        assert agrees(parts, answer) == []


@pytest.mark.parametrize(
    ("text", "reasoning", "said"),
    [
        ("Hm.\n</think>\n\nIt is 4.", "Hm.", "It is 4."),
        ("Hm.</think>", "Hm.", ""),
        ("Write `</think>` behind it.", "", "Write `</think>` behind it."),
        ("<think>Hm.</think>It ends with </think> so.", "Hm.", "It ends with </think> so."),
    ],
)
def test_a_reasoning_that_nothing_opened_is_known_when_it_is_closed(text, reasoning, said):
    parser = AnswerParser(thinking=Thinking("<think>", "</think>"))
    parts = parser.feed(text)
    last, answer = parser.finish(whole=True)
    assert (answer.reasoning, answer.text) == (reasoning, said)
    streamed = "".join(one.text for one in [*parts, *last] if isinstance(one, TextDelta))
    assert streamed == (answer.streamed or answer.text)


def test_models_without_a_form_get_the_generic_one_and_marks_of_thinking_are_found():
    assert hand_form(None, ["a"]) is GENERIC
    marks = {"<t>": [7, 8], "</t>": [9], "\n\n": [5], "\n": [6], " ": [1, 2]}
    assert thinking_of(None, "<t>", marks.__getitem__) is None
    some = Reasoning("<t>", "</t>")
    for prompt, opened in (
        ("<a><t>", True),
        ("<a><t>\nOkay, ", True),
        ("<t>\n</t>\n", False),
        ("<a>", False),
        ("<t>x</t><t>", True),
        ("Say <t>. [/INST]", False),
    ):
        assert thinking_of(some, prompt, marks.__getitem__).opened is opened
    # An empty block asks for no thinking; one that lies further back says nothing.
    assert thinking_of(some, "<a><t>\n</t>\n\n", marks.__getitem__).start_ids == ()
    for prompt in ("<t></t> and then many other words", "<t></t><|end|>\n<|say|>"):
        later = thinking_of(some, prompt, marks.__getitem__)
        assert (later.start_ids, later.spaces) == ((7, 8), (5, 6))
    # Nothing says that who writes the closing mark alone begins by thinking.
    alone = Reasoning("", "</t>")
    assert not thinking_of(alone, "<a>", marks.__getitem__).opened


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
    assert (answer.text, answer.cut) == ("", None)
    assert [one.error for one in answer.invalid] == [
        "a call's arguments is nested more than 64 deep; flatten it"
    ]


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
