"""mlx-lm's tokenizer as the chat room wants it: dates in templates stand still."""

from datetime import datetime

import pytest
from mlx_lm.utils import load_tokenizer

from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.chat.transcript import render
from llm_mlx_promptcache.engine.chat_tokenizer import TemplateTokenizer

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
