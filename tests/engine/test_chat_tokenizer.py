"""mlx-lm's tokenizer as the chat room wants it: dates in templates stand still."""

from datetime import datetime

import pytest
from mlx_lm.utils import load_tokenizer

from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.chat.prompt import Feature, Mend
from llm_mlx_promptcache.chat.transcript import render
from llm_mlx_promptcache.engine import chat_tokenizer
from llm_mlx_promptcache.engine.chat_tokenizer import TemplateTokenizer

NO_SYSTEM = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
MOMENT = datetime(2020, 1, 7)
BODY = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.fixture
def tokenizer_of(tiny_llama):
    def make(template):
        wrapper = load_tokenizer(tiny_llama())
        wrapper._tokenizer.chat_template = template
        return TemplateTokenizer(wrapper)

    return make


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("\n{{ strftime_now('%d %b %Y') }}|", "\n07 Jan 2020|Hello"),
        ("{{ strftime_now('%B %-d, %Y')[:3] }}|", "Jan|Hello"),
        (
            "{% if strftime_now is defined %}{% set d = strftime_now('%Y') %}{% endif %}{{ d }}|",
            "2020|Hello",
        ),
    ],
)
def test_a_template_s_clock_stands_still(tokenizer_of, template, text):
    tokenizer = tokenizer_of(template + BODY)
    made = render([Message("user", "Hello")], tokenizer, fingerprint="a", now=MOMENT)
    assert tokenizer.decode(made.ids) == text
    assert made.rendered == {"now": "2020-01-07T00:00:00"}


def test_a_template_without_a_clock_keeps_no_date(tokenizer_of):
    made = render([Message("user", "Hello")], tokenizer_of(BODY), fingerprint="a", now=MOMENT)
    assert made.rendered == {}


def test_what_the_probes_found_is_remembered_by_the_template(tokenizer_of, monkeypatch):
    rules, ask = Message("system", "Rules."), Message("user", "Hello")
    first, other = tokenizer_of(NO_SYSTEM), tokenizer_of(BODY)
    assert first.prompt_form.start([Feature.SYSTEM]) == {Mend.SYSTEM_IN_USER}
    assert other.prompt_form.start([Feature.SYSTEM]) == frozenset()

    def never(apply):
        raise AssertionError("the template was probed again")

    monkeypatch.setattr(chat_tokenizer, "find_prompt_form", never)
    again = tokenizer_of(NO_SYSTEM)
    assert again.prompt_form == first.prompt_form
    assert again.decode(render([rules, ask], again, fingerprint="a").ids) == "Rules.\n\nHello"


def test_a_damaged_memory_of_the_probes_is_found_out_again(tokenizer_of, monkeypatch):
    class Damaged:
        kept = None

        def get(self, key, kind):
            return {"system": ["execute this"]}

        def put(self, key, kind, value):
            self.kept = value

    facts = Damaged()
    monkeypatch.setattr(chat_tokenizer, "model_facts", lambda: facts)
    form = tokenizer_of(NO_SYSTEM).prompt_form
    assert form.start([Feature.SYSTEM]) == {Mend.SYSTEM_IN_USER}
    assert facts.kept == form.to_json()
