"""mlx-lm's tokenizer as the chat room wants it: dates in templates stand still."""

import os
import secrets
import subprocess
import sys
from datetime import datetime

import pytest
from mlx_lm.utils import load_tokenizer

from llm_mlx_promptcache.chat.mends import Mend
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.chat.prompt import Feature
from llm_mlx_promptcache.chat.rendering import render
from llm_mlx_promptcache.models import chat_tokenizer
from llm_mlx_promptcache.models.chat_tokenizer import TemplateTokenizer
from llm_mlx_promptcache.models.template_profile import TemplateProfile

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

    def never(apply, switch):
        raise AssertionError("the template was probed again")

    monkeypatch.setattr(chat_tokenizer, "learn_profile", never)
    again = tokenizer_of(NO_SYSTEM)
    assert again.prompt_form == first.prompt_form
    assert again.decode(render([rules, ask], again, fingerprint="a").ids) == "Rules.\n\nHello"


def test_a_damaged_memory_of_the_probes_is_found_out_again(tokenizer_of, monkeypatch):
    class Damaged:
        kept = None

        def get(self, key, kind):
            return {**TemplateProfile().to_json(), "prompt": {"system": ["execute this"]}}

        def put(self, key, kind, value):
            self.kept = value

    facts = Damaged()
    monkeypatch.setattr(chat_tokenizer, "model_facts", lambda: facts)
    profile = tokenizer_of(NO_SYSTEM).profile
    assert profile.prompt.start([Feature.SYSTEM]) == {Mend.SYSTEM_IN_USER}
    assert facts.kept == profile.to_json()


CALLS = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}<{{ m.role }}>"
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>"
    "{% endfor %}</{{ m.role }}>{% endfor %}"
)


def test_a_form_that_was_learned_is_remembered_by_the_next_process(tokenizer_of, tmp_path):
    """Twice: it is learned, and then nothing is rendered for it."""
    (tmp_path / "template").write_text(CALLS)
    code = (
        "import os, sys; from pathlib import Path; from mlx_lm.utils import load_tokenizer\n"
        "from llm_mlx_promptcache.chat.template import ChatTemplate\n"
        "from llm_mlx_promptcache.models.chat_tokenizer import TemplateTokenizer\n"
        "count, render = 0, ChatTemplate.render\n"
        "def counted(*a, **k):\n"
        "    global count; count += 1; return render(*a, **k)\n"
        "ChatTemplate.render = counted\n"
        "wrapper = load_tokenizer(Path(sys.argv[1]))\n"
        "wrapper._tokenizer.chat_template = Path(sys.argv[2]).read_text()\n"
        "tokenizer = TemplateTokenizer(wrapper)\n"
        "print(tokenizer.call_form.call); tokenizer.reasoning; tokenizer.prompt_form\n"
        "print(count)\n"
    )
    folder = tokenizer_of(CALLS)._inner.name_or_path
    command = [sys.executable, "-c", code, folder, tmp_path / "template"]
    environment = {**os.environ, "LLM_MLX_CACHED_HOME": str(tmp_path / "home")}
    runs = [
        subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        for _ in range(2)
    ]
    (form, count), (again, renderings) = [run.stdout.splitlines() for run in runs]
    assert "<call>" in form
    assert again == form
    assert int(count) > 10
    assert renderings == "0"


@pytest.mark.parametrize("changed", ["template", "mark", "switch", "learner"])
def test_what_was_learned_belongs_to_all_that_decides_it(tokenizer_of, monkeypatch, changed):
    asked = []
    real = chat_tokenizer.learn_profile

    def learn(apply, switch):
        asked.append(switch)
        return real(apply, switch)

    monkeypatch.setattr(chat_tokenizer, "learn_profile", learn)
    unique = f"{{# {changed} {secrets.token_hex(8)} #}}"
    for _ in range(2):
        assert "<call>" in tokenizer_of(unique + CALLS).call_form.head
    assert len(asked) == 1
    other = tokenizer_of((unique + " {# another #}" if changed == "template" else unique) + CALLS)
    if changed == "mark":
        other._inner.bos_token = "<another>"
    elif changed == "switch":
        other.thinking_argument = "thinking"
    elif changed == "learner":
        monkeypatch.setattr(chat_tokenizer, "learner", lambda: "another")
    assert "<call>" in other.call_form.head
    assert len(asked) == 2
