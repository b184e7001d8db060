"""Tool loops, thinking and dates: the path goes on where the template lets it."""

import dataclasses
import json
from array import array
from datetime import datetime
from itertools import pairwise

import pytest

from llm_mlx_promptcache.chat.mends import Mend
from llm_mlx_promptcache.chat.messages import Generated, Message, ToolCall
from llm_mlx_promptcache.chat.rendering import TemplateError, render

FINGERPRINT = "model-a"
SYSTEM = Message("system", "You are a helpful assistant who knows geography.")
ASK = Message("user", "What is the weather in Paris?")
AGAIN = Message("user", "And in Rome?")
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "x", "parameters": {}}}
    for name in ("weather", "add")
]
CALL = ToolCall("weather", {"city": "Zürich", "days": 2}, "call_abcdefghijkl")
OTHER = ToolCall("add", {"a": 1.5, "list": [1, {"b": None}]}, "call_mnopqrstuvwx")
THOUGHT = "The user asks, so I look."

JSON_CALL = (
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich", "days": 2}}\n</tool_call>'
)
TURNED = '<tool_call>{"arguments":{"days":2,"city":"Zürich"},"name":"weather"}</tool_call>'
XML_CALL = "\n<function=weather>\n<parameter=city>\nZürich\n</parameter>\n<parameter=days>\n2\n"
XML_CALL += "</parameter>\n</function>"
TURNED_XML = "<function=weather>\n<parameter=days>2</parameter>\n<parameter=city>\nZürich\n"
TURNED_XML += "</parameter>\n</function>"
# For each template with tools: the call as it would render it, and in other words.
RAW = {
    "tool_json": (JSON_CALL, TURNED),
    "tool_xml": (XML_CALL, TURNED_XML),
    "tool_text_arguments": (
        '<tool_call>weather {"city": "Zürich", "days": 2}</tool_call>',
        '<tool_call> weather {"days":2,"city":"Zürich"} </tool_call>',
    ),
    "think_loop": (JSON_CALL, TURNED),
    "think_kept": (JSON_CALL, TURNED),
}


def made(tokenizer, *messages, tools=TOOLS, now=None, **arguments):
    shaped = {"tools": tools, "template_arguments": arguments or None, "now": now}
    return render(messages, tokenizer, fingerprint=FINGERPRINT, **shaped)


def result(text="24 degrees", call=CALL):
    return Message("tool", text, tool_call_id=call.id)


def path_of(first, answer):
    return first.ids + array("I", answer.generated.ids)


def continued(first, answer, second):
    path = path_of(first, answer)
    return second.ids[: len(path)] == path


def whole(tokenizer, *messages, **more):
    """The ids of the conversation with nothing to replay."""
    plain = [dataclasses.replace(message, generated=None) for message in messages]
    return made(tokenizer, *plain, **more).ids


@pytest.mark.parametrize("drift", [0, 1])
@pytest.mark.parametrize("template", RAW)
def test_a_call_is_replayed_as_it_was_generated(chat, template, drift):
    tokenizer = chat(template)
    answer = tokenizer.generated(RAW[template][drift], calls=[CALL])
    first = made(tokenizer, SYSTEM, ASK)
    second = made(tokenizer, SYSTEM, ASK, answer, result())
    assert second.replayed == 1
    assert continued(first, answer, second)
    path = len(path_of(first, answer))
    assert [b.tier for b in second.boundaries if b.position == path] == ["assistant"]
    # What follows the answer is what follows it in the whole rendering.
    (stop,) = tokenizer.stop_ids
    rest = whole(tokenizer, SYSTEM, ASK, answer, result())
    behind = [at for at, token in enumerate(rest) if token == stop][2]
    assert second.ids[path:] == rest[behind + 1 :]


@pytest.mark.parametrize("drift", [0, 1])
@pytest.mark.parametrize("template", RAW)
def test_ten_steps_of_a_tool_loop_prefill_what_is_new(chat, template, drift):
    tokenizer = chat(template)
    messages = [SYSTEM, ASK]
    path, added = array("I"), []
    for step in range(10):
        prompt = made(tokenizer, *messages)
        assert prompt.ids[: len(path)] == path
        added.append(tokenizer.decode(prompt.ids[len(path) :]))
        call = dataclasses.replace(CALL, id=f"call_{step:010d}")
        answer = tokenizer.generated(RAW[template][drift], calls=[call])
        path = path_of(prompt, answer)
        messages += [answer, result(f"{step} degrees", call)]
    # A step adds its result and the template's words round it, nothing twice.
    assert [text.replace(str(step), "N") for step, text in enumerate(added[1:])] == [
        added[1].replace("0", "N")
    ] * 9
    last = made(tokenizer, *messages)
    assert last.replayed == 10
    # What was remembered of earlier steps is what a new process finds.
    assert last == made(chat(template), *messages)


def test_parallel_calls_are_replayed_together(chat):
    tokenizer = chat("tool_json")
    added = '{"name":"add","arguments":{"list":[1,{"b":null}],"a":1.5}}'
    raw = f"Looking.{TURNED}<tool_call>{added}</tool_call>"
    answer = tokenizer.generated(raw, "Looking.", calls=[CALL, OTHER])
    first = made(tokenizer, ASK)
    second = made(tokenizer, ASK, answer, result(), result("3", OTHER))
    assert continued(first, answer, second)
    tiers = [b.tier for b in second.boundaries]
    assert tiers == ["system", "user", "assistant", "user", "user"]
    ends = [
        tokenizer.decode(second.ids[a.position : b.position])
        for a, b in pairwise(second.boundaries)
    ]
    assert ends[-2].endswith("24 degrees\n</tool_response>")
    assert ends[-1].startswith("\n<tool_response>\n3")


@pytest.mark.parametrize(
    "edit",
    [
        {"content": "Hm."},
        {"reasoning": "Hm."},
        {"tool_calls": ()},
        {"tool_calls": (dataclasses.replace(CALL, name="add"),)},
        {"tool_calls": (dataclasses.replace(CALL, arguments={"city": "Rome"}),)},
        {"tool_calls": (CALL, OTHER)},
    ],
)
def test_an_edit_of_any_part_wins(chat, edit):
    tokenizer = chat("think_kept")
    raw = f"<think>\n{THOUGHT}\n</think>\n\nLooking.{TURNED}"
    answer = tokenizer.generated(raw, "Looking.", THOUGHT, [CALL])
    messages = [SYSTEM, ASK, answer, AGAIN]
    assert made(tokenizer, *messages).replayed == 1
    messages[2] = dataclasses.replace(answer, **edit)
    second = made(tokenizer, *messages)
    assert second.replayed == 0
    assert second.ids == whole(tokenizer, *messages)


def test_order_of_keys_and_ids_are_no_edit(chat):
    tokenizer = chat("tool_json")
    answer = tokenizer.generated(TURNED, calls=[CALL])
    turned = ToolCall("weather", {"days": 2, "city": "Zürich"}, "call_other")
    again = dataclasses.replace(answer, tool_calls=(turned,))
    second = made(tokenizer, ASK, again, result(call=turned))
    assert continued(made(tokenizer, ASK), answer, second)


def test_law_13_calls_that_a_template_hides_are_told_as_text_and_replayed(chat):
    tokenizer = chat("tool_hidden")
    answer = tokenizer.generated(TURNED, calls=[CALL])
    second = made(tokenizer, ASK, answer, result())
    assert Mend.CALLS_AS_TEXT in second.mends
    assert continued(made(tokenizer, ASK), answer, second)


def test_nine_characters_are_made_of_ids_that_a_template_refuses(chat):
    tokenizer = chat("tool_mistral")
    raw = '[CALLS][{"name": "weather", "arguments": {"days": 2, "city": "Zürich"}}]'
    answer = tokenizer.generated(raw, calls=[CALL])
    first, second = made(tokenizer, ASK), made(tokenizer, ASK, answer, result())
    assert second.replayed == 1
    assert continued(first, answer, second)
    shown = tokenizer.decode(whole(tokenizer, ASK, answer, result()))
    called, answered = (part.split('"id": "')[1][:10] for part in shown.split("[RESULT]"))
    assert called == answered
    assert called.endswith('"')


def test_calls_without_ids_and_results_without_names_find_each_other(chat):
    tokenizer = chat("tool_mistral")
    calls = (dataclasses.replace(CALL, id=""), dataclasses.replace(OTHER, id=""))
    answer = Message("assistant", "", tool_calls=calls)
    results = [Message("tool", "24"), Message("tool", "3")]
    shown = tokenizer.decode(made(tokenizer, ASK, answer, *results).ids)
    assert '{"content": 24, "id": "call00001"}' in shown
    assert '{"content": 3, "id": "call00002"}' in shown


def test_arguments_are_text_where_a_template_wants_text(chat):
    tokenizer = chat("tool_text_arguments")
    shown = tokenizer.decode(
        made(tokenizer, ASK, Message("assistant", "", tool_calls=(CALL,)), result()).ids
    )
    assert 'weather {"city": "Zürich", "days": 2}' in shown


def test_thinking_is_replayed_in_a_loop_and_dropped_behind_a_question(chat):
    tokenizer = chat("think_loop")
    raw = f"<think>\n{THOUGHT}\n</think>\n\n{TURNED}"
    answer = tokenizer.generated(raw, reasoning=THOUGHT, calls=[CALL])
    first = made(tokenizer, SYSTEM, ASK)
    second = made(tokenizer, SYSTEM, ASK, answer, result())
    assert continued(first, answer, second)
    said = tokenizer.generated("It is warm.", "It is warm.")
    messages = [SYSTEM, ASK, answer, result(), said, AGAIN]
    third = made(tokenizer, *messages)
    assert THOUGHT not in tokenizer.decode(third.ids)
    # Without the thinking, the call is not as it was; the question's boundary is reused.
    question = max(b.position for b in first.boundaries)
    assert first.ids[:question] == third.ids[:question]
    assert third.replayed == 1 or third.ids == whole(tokenizer, *messages)


def test_thinking_is_replayed_where_the_template_keeps_it(chat):
    tokenizer = chat("think_kept")
    raw = f"<think>{THOUGHT}\n\n</think>It is warm."
    answer = tokenizer.generated(raw, "It is warm.", THOUGHT)
    first, second = made(tokenizer, ASK), made(tokenizer, ASK, answer, AGAIN)
    assert second.replayed == 1
    assert continued(first, answer, second)


def test_a_template_that_knows_no_thinking_wins(chat):
    tokenizer = chat("tool_json")
    answer = tokenizer.generated(f"<think>{THOUGHT}</think>Warm.", "Warm.", THOUGHT)
    second = made(tokenizer, ASK, answer, AGAIN)
    assert second.replayed == 0
    empty = tokenizer.generated("<think>\n\n</think>\n\nWarm.", "Warm.")
    assert made(tokenizer, ASK, empty, AGAIN).replayed == 0


@pytest.mark.parametrize("on", [True, False])
def test_a_boundary_stands_before_the_thinking_that_a_prompt_adds(chat, on):
    tokenizer = chat("think_loop_on")
    raw = f"{THOUGHT}\n</think>\n\nWarm." if on else "Warm."
    answer = tokenizer.generated(raw, "Warm.", THOUGHT if on else "")
    first = made(tokenizer, SYSTEM, ASK, enable_thinking=on)
    second = made(tokenizer, SYSTEM, ASK, answer, AGAIN, enable_thinking=on)
    tail = first.boundaries[-1]
    assert tail.tier == "user"
    assert tokenizer.decode(first.ids[: tail.position]).endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(first.ids[tail.position :]).startswith("<think>")
    assert first.ids[: tail.position] == second.ids[: tail.position]


def test_an_empty_think_block_is_replayed_where_history_keeps_it(chat):
    tokenizer = chat("empty_think_kept")
    answer = tokenizer.generated(TURNED, calls=[CALL])
    first = made(tokenizer, ASK, enable_thinking=False)
    second = made(tokenizer, ASK, answer, result(), enable_thinking=False)
    assert continued(first, answer, second)
    # With thinking on, the template's empty block is not what was generated.
    assert made(tokenizer, ASK, answer, result(), enable_thinking=True).replayed == 0


def test_an_empty_think_block_that_history_drops_is_dropped(chat):
    tokenizer = chat("think_loop_off")
    answer = tokenizer.generated(TURNED, calls=[CALL])
    first = made(tokenizer, ASK, enable_thinking=False)
    second = made(tokenizer, ASK, answer, result(), enable_thinking=False)
    assert second.replayed == 0
    tail = first.boundaries[-1].position
    assert first.ids[:tail] == second.ids[:tail]
    assert "<think>" not in tokenizer.decode(first.ids[:tail])


def test_tools_are_the_same_in_any_order_and_end_in_a_boundary(chat):
    tokenizer = chat("tool_json")
    turned = [
        {"function": dict(reversed(tool["function"].items())), "type": "function"}
        for tool in reversed(TOOLS)
    ]
    first, second = made(tokenizer, ASK), made(tokenizer, ASK, tools=turned)
    assert first == second
    assert first.boundaries[0].tier == "system"
    system = tokenizer.decode(first.ids[: first.boundaries[0].position])
    assert system.endswith("}<|im_end|>\n<|im_start|>user\n")
    assert system.index('"add"') < system.index('"weather"')


def test_properties_keep_the_order_that_they_are_declared_in(chat):
    properties = {"why": {"type": "string"}, "answer": {"description": "y", "type": "string"}}
    function = {"name": "f", "parameters": {"properties": properties, "type": "object"}}
    shown = tokenizer_text(chat("tool_json"), [{"function": function}])
    assert (
        '{"type": "function", "function": {"name": "f", "parameters": {"type": "object",'
        ' "properties": {"why": {"type": "string"},'
        ' "answer": {"type": "string", "description": "y"}}}}}'
    ) in shown


def tokenizer_text(tokenizer, tools):
    return tokenizer.decode(made(tokenizer, ASK, tools=tools).ids)


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        ([3], r"tools\[0\] is a int"),
        ([TOOLS[0], {"name": "x"}], r"tools\[1\].function is a NoneType"),
        ([{"function": {}}], r"tools\[0\].function.name is a NoneType"),
        ([{"function": {"name": ""}}], r"tools\[0\].function.name is empty"),
        ([TOOLS[0], TOOLS[0]], r"tools\[1\].function.name is 'weather' again"),
        ([{"function": {"name": "f", "parameters": {"x": {1}}}}], r"tools\[0\] holds a set"),
    ],
)
def test_a_wrong_tool_is_named(chat, tools, words):
    with pytest.raises(ValueError, match=words):
        made(chat("tool_json"), ASK, tools=tools)


def test_a_developer_is_a_system_where_a_template_hides_it(chat):
    tokenizer = chat(
        "{% for m in messages %}{% if m.role in ['system', 'user'] %}"
        "{{ m.role + ': ' + m.content + '\n' }}{% endif %}{% endfor %}"
    )
    transcript = made(tokenizer, Message("developer", "Be short."), ASK, tools=())
    assert tokenizer.decode(transcript.ids).startswith("system: Be short.\nuser: ")
    assert transcript.boundaries[0].tier == "system"


def test_neighbours_are_merged_only_where_a_template_refuses_them(chat):
    merged, plain = chat("gemma"), chat("chatml")
    for tokenizer, joined in ((merged, True), (plain, False)):
        shown = tokenizer.decode(made(tokenizer, ASK, AGAIN, tools=()).ids)
        assert (f"{ASK.content}\n\n{AGAIN.content}" in shown) == joined
    answer = merged.answer("Warm.")
    first = made(merged, ASK, AGAIN, tools=())
    second = made(merged, ASK, AGAIN, answer, AGAIN, tools=())
    assert continued(first, answer, second)


def test_a_day_passes_and_the_date_stays(chat):
    tokenizer = chat("dated")
    first = made(tokenizer, ASK, now=datetime(2026, 3, 1, 23, 59), tools=())
    assert "Today: 01 Mar 2026" in tokenizer.decode(first.ids)
    assert json.loads(json.dumps(first.rendered)) == first.rendered
    answer = tokenizer.answer("Warm.", rendered=first.rendered)
    second = made(tokenizer, ASK, answer, AGAIN, now=datetime(2026, 3, 2), tools=())
    assert continued(first, answer, second)
    assert second.rendered == first.rendered
    edited = dataclasses.replace(answer, content="Cold.")
    third = made(tokenizer, ASK, edited, AGAIN, now=datetime(2026, 3, 2), tools=())
    assert "Today: 01 Mar 2026" in tokenizer.decode(third.ids)


def test_template_arguments_are_kept_unless_others_are_given(chat):
    tokenizer = chat("think_loop_off")
    first = made(tokenizer, ASK, tools=(), enable_thinking=False)
    assert first.rendered == {"arguments": {"enable_thinking": False}}
    answer = tokenizer.answer("Warm.", rendered=first.rendered)
    again = made(tokenizer, ASK, answer, AGAIN, tools=())
    assert tokenizer.decode(again.ids).endswith("<think>\n\n</think>\n\n")
    other = made(tokenizer, ASK, answer, AGAIN, tools=(), enable_thinking=True)
    assert tokenizer.decode(other.ids).endswith("assistant\n")
    assert made(chat(), ASK, tools=()).rendered == {}


def test_arguments_that_are_not_the_template_s_are_refused_or_ignored(chat):
    with pytest.raises(ValueError, match="template_arguments has 'tokenize'"):
        made(chat(), ASK, tools=(), tokenize=True)
    recorded = {"arguments": {"messages": [], "chat_template": "x", "tools": 1}}
    answer = chat().answer("Warm.", rendered=recorded)
    assert made(chat(), ASK, answer, AGAIN, tools=()).replayed == 1
    assert made(chat(), ASK, tools=(), thing={1}).rendered == {}


@pytest.mark.parametrize("now", [None, 5, "soon", "2026-13-01"])
def test_a_damaged_date_is_today(chat, now):
    tokenizer = chat("dated")
    answer = tokenizer.answer("Warm.", rendered={"now": now, "arguments": 3})
    shown = made(tokenizer, ASK, answer, AGAIN, now=datetime(2026, 3, 2), tools=())
    assert "Today: 02 Mar 2026" in tokenizer.decode(shown.ids)


def test_a_refusal_shows_no_arguments(chat):
    tokenizer = chat("{{ raise_exception('no: ' + messages[1].tool_calls | string) }}")
    secret = ToolCall("weather", {"city": "Secretville"})
    with pytest.raises(TemplateError) as refused:
        made(tokenizer, ASK, Message("assistant", "", tool_calls=(secret,)), Message("tool", "x"))
    assert "Secretville" not in str(refused.value)


def test_records_of_text_only_stay_valid():
    stored = Generated.of([1], "Warm.", "a")
    assert stored.digest == "".join(Generated.of([1], "Warm.", "a", reasoning="").digest)
    assert stored.matches("Warm.", "a")
    assert not stored.matches("Warm.", "a", reasoning="x")
    assert not stored.matches("Warm.", "a", tool_calls=(CALL,))
