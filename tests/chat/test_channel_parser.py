"""Answers in channels: reasoning, calls and text are told apart by the headers of messages."""

import json

import pytest
from form_cases import TOOLS

from llm_mlx_promptcache.chat.answer_parser import AnswerParser
from llm_mlx_promptcache.chat.answer_parts import CutShort, ReasoningDelta, TextDelta
from llm_mlx_promptcache.chat.channel_parser import ChannelParser, parser_of
from llm_mlx_promptcache.chat.generated import InvalidCall
from llm_mlx_promptcache.chat.grammar import json_object_grammar
from llm_mlx_promptcache.chat.hand_forms import GENERIC, hand_form

FORM = hand_form(None, ["<|start|>", "<|channel|>", "<|message|>"])
THOUGHT = "<|channel|>analysis<|message|>Hm < so.<|end|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>It is <4>."
CALL = (
    "<|start|>assistant<|channel|>commentary to=functions.add_up <|constrain|>json"
    '<|message|>{"a": "1"}<|call|>'
)
SHOWN = (
    '<|start|>assistant to=functions.add_up<|channel|>commentary json<|message|>{"a": 1}<|call|>'
)


def parse(text, size=1, whole=True):
    parser = parser_of(FORM, TOOLS)
    parts = []
    for at in range(0, len(text), size):
        parts += parser.feed(text[at : at + size])
    last, answer = parser.finish(whole=whole)
    parts += last
    assert tuple(part for part in parts if isinstance(part, InvalidCall)) == answer.invalid
    for kind, said in ((TextDelta, answer.text), (ReasoningDelta, answer.reasoning)):
        assert "".join(part.text for part in parts if isinstance(part, kind)) == said
    return answer


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize("end", ["", "<|call|>", "<|end|>" + FINAL])
def test_law_14_marks_in_a_string_of_a_call_are_its_text(size, end):
    city = '<|end|> \\"<|start|>assistant<|channel|>final<|message|>\\\\ <|call|>'
    head = "<|channel|>commentary to=functions.find_place <|constrain|>json<|message|>"
    answer = parse(f'{THOUGHT}<|start|>assistant{head}{{"city": "{city}"}}{end}', size)
    [call] = answer.calls
    assert call.arguments == {"city": json.loads(f'"{city}"')}
    assert (answer.text, answer.invalid) == ("It is <4>." if "final" in end else "", ())


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize("end", ["", "<|return|>"])
def test_what_stands_behind_a_call_with_an_open_string_is_not_lost(size, end):
    broken = CALL.replace('{"a": "1"}<|call|>', '{"a": "1<|end|>')
    answer = parse(THOUGHT + broken + FINAL + end, size)
    assert [(one.name, one.text) for one in answer.invalid] == [("add_up", '{"a": "1')]
    assert (answer.reasoning, answer.text) == ("Hm < so.", "It is <4>.")


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize(
    ("text", "reasoning", "said", "calls"),
    [
        (THOUGHT + FINAL, "Hm < so.", "It is <4>.", []),
        (THOUGHT + CALL, "Hm < so.", "", [{"a": 1}]),
        (THOUGHT + SHOWN, "Hm < so.", "", [{"a": 1}]),
        (SHOWN.removeprefix("<|start|>assistant"), "", "", [{"a": 1}]),
        ("<|channel|>commentary<|message|>I look.<|end|>" + CALL, "", "I look.", [{"a": 1}]),
        (
            THOUGHT + "<|start|>assistant" + THOUGHT + FINAL,
            "Hm < so.\n\nHm < so.",
            "It is <4>.",
            [],
        ),
        ("No header, <|x|>.", "", "No header, <|x|>.", []),
        ("", "", "", []),
    ],
)
def test_channels_are_told_apart(text, reasoning, said, calls, size):
    answer = parse(text, size)
    assert (answer.reasoning, answer.text) == (reasoning, said)
    assert [(call.name, call.arguments) for call in answer.calls] == [
        ("add_up", arguments) for arguments in calls
    ]


def test_a_call_that_was_cut_is_none_and_one_of_no_tool_is_told():
    body = CALL.removesuffix("<|call|>")
    for end in range(len("<|start|>assistant"), len(body)):
        answer = parse(body[:end], 1000, whole=False)
        assert answer.calls == ()
        # Its header says that it is a call.
        assert isinstance(answer.cut, CutShort) == ("to=f" in body[:end])
    [invalid] = parse(CALL.replace("add_up", "subtract")).invalid
    assert (invalid.name, invalid.text) == ("subtract", '{"a": "1"}')
    assert invalid.arguments == {"a": "1"}
    [invalid] = parse(CALL.replace('"1"}', "")).invalid
    assert "can't be read" in invalid.error


@pytest.mark.parametrize("whole", [True, False])
def test_a_document_stands_in_its_channel_and_is_cut_where_it_is_not_whole(whole):
    grammar = json_object_grammar(form=FORM)
    parser = parser_of(FORM, TOOLS, grammar=grammar)
    assert isinstance(parser, ChannelParser)
    thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    parser.feed(thought + '<|channel|>final <|constrain|>json<|message|>{"a": 1')
    _, answer = parser.finish(whole=whole)
    assert (answer.reasoning, answer.text) == ("Hm.", '{"a": 1')
    assert (answer.cut is None) == whole


def test_without_channels_an_answer_is_read_by_its_marks():
    assert isinstance(parser_of(GENERIC, TOOLS), AnswerParser)
