"""A model under a grammar always says something that the grammar allows."""

import json
import re
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from readers import MAGIC

from llm_mlx_promptcache.chat.answer_parser import AnswerParser
from llm_mlx_promptcache.chat.answer_parts import CallName
from llm_mlx_promptcache.chat.call_forms import Thinking
from llm_mlx_promptcache.chat.forms import CallLayout, Form
from llm_mlx_promptcache.chat.grammar import (
    Caps,
    Grammar,
    GrammarError,
    regex_grammar,
    schema_grammar,
    tool_grammar,
)
from llm_mlx_promptcache.chat.hand_forms import GENERIC
from llm_mlx_promptcache.engine import matchers as matchers_module
from llm_mlx_promptcache.engine.constraint import (
    Constraint,
    ConstraintError,
    Matchers,
    grammar_tokenizer,
)
from llm_mlx_promptcache.models.chat_tokenizer import TemplateTokenizer
from llm_mlx_promptcache.models.detokenizer import TextDecoder

CAPS = Caps(string=6, items=2)
OTHER = {
    "type": "function",
    "function": {
        "name": "wörter",
        "parameters": {
            "type": "object",
            "properties": {"text": {"type": "string"}, "how": {"enum": ["a", "b"]}},
            "required": ["text"],
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "tags": {"type": "array", "items": {"enum": ["x", "y"]}},
        "age": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    },
    "required": ["name", "tags"],
}


class Speaker:
    """A loaded model that says what a constraint lets it say, drawn with a seed."""

    def __init__(self, folder):
        from llm_mlx_promptcache.models.loading import load_model

        loaded = load_model(str(folder))
        self.model, self.wrapper = loaded.model, loaded.tokenizer
        self.vocab_size = self.model(mx.array([[1]])).shape[-1]
        self.matchers = Matchers(grammar_tokenizer(self.wrapper, self.vocab_size))
        self.stops = set(self.wrapper.eos_token_ids)
        self.forwards = 0

    def constraint(self, grammar, **options):
        return Constraint(self.matchers, grammar, self.vocab_size, **options)

    def say(self, constraint, seed=None, limit=400, jump=True, prompt=(1, 5, 6)):
        """The tokens of an answer; `jump`: forced ones are not asked of the model one by one."""
        from mlx_lm.models.cache import make_prompt_cache

        random = None if seed is None else np.random.default_rng(seed)
        cache, new, said = make_prompt_cache(self.model), list(prompt), []
        while len(said) < limit:
            run = constraint.forced() if jump else []
            if not run:
                logits = self.model(mx.array([new]), cache=cache)[:, -1, :]
                self.forwards += 1
                run, new = [self._draw(constraint.mask(logits), random)], []
            for token in run:
                constraint.consume(token)
                said.append(token)
                if token in self.stops:
                    return said
            new += run
        return said

    def _draw(self, logits, random):
        scores = np.array(logits.astype(mx.float32))[0]
        if random is not None:
            scores = scores + random.gumbel(size=scores.shape)
        return int(scores.argmax())

    def text(self, ids):
        return self.wrapper.decode([token for token in ids if token not in self.stops])

    def pieces(self, ids):
        detokenizer = TextDecoder(self.wrapper._tokenizer).detokenizer()
        for token in ids:
            if token not in self.stops:
                yield detokenizer.add(token)
        yield detokenizer.finish()


@pytest.fixture(scope="module")
def speaker(tiny_llama):
    return Speaker(tiny_llama())


def fits(value, schema):
    """True if `value` is one of SCHEMA's, with the caps."""
    assert set(value) <= {"name", "tags", "age"}
    assert len(value["name"]) <= CAPS.string
    assert len(value["tags"]) <= CAPS.items
    assert set(value["tags"]) <= {"x", "y"}
    return value.get("age") is None or type(value["age"]) is int


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
@pytest.mark.parametrize("jump", [True, False])
def test_a_random_model_writes_json_of_the_schema(speaker, seed, jump):
    constraint = speaker.constraint(schema_grammar(SCHEMA, caps=CAPS))
    said = speaker.say(constraint, seed, jump=jump)
    assert said[-1] in speaker.stops
    assert constraint.finished
    assert constraint.complete
    assert fits(json.loads(speaker.text(said)), SCHEMA)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("choice", ["magic", "wörter", True])
def test_a_random_model_makes_the_call_that_is_asked_for(speaker, choice, seed):
    grammar = tool_grammar([OTHER, MAGIC], choice, GENERIC, calls=2, caps=CAPS)
    said = speaker.say(speaker.constraint(grammar), seed)
    parser = AnswerParser(GENERIC, [OTHER, MAGIC], grammar=grammar)
    parts = [part for piece in speaker.pieces(said) for part in parser.feed(piece)]
    last, answer = parser.finish(whole=True)
    assert 1 <= len(answer.calls) <= 2
    assert not answer.text
    for call in answer.calls:
        assert call.name == choice or choice is True
        assert set(call.arguments) <= ({"input"} if call.name == "magic" else {"text", "how"})
    names = [part.name for part in [*parts, *last] if isinstance(part, CallName)]
    assert names == [call.name for call in answer.calls]


@pytest.mark.parametrize("seed", range(4))
def test_a_random_model_writes_a_call_or_a_document(speaker, seed):
    schema = {"type": "object", "properties": {"done": {"type": "boolean"}}, "required": ["done"]}
    grammar = tool_grammar([MAGIC], None, GENERIC, schema=schema, caps=CAPS)
    said = speaker.say(speaker.constraint(grammar), seed)
    parser = AnswerParser(GENERIC, [MAGIC], grammar=grammar)
    parser.feed(speaker.text(said))
    _, answer = parser.finish(whole=True)
    assert bool(answer.calls) != bool(answer.text)
    if answer.text:
        assert type(json.loads(answer.text)["done"]) is bool


@pytest.mark.parametrize("seed", range(3))
def test_a_regex_holds_and_ends(speaker, seed):
    grammar = regex_grammar("(ab|c)+;[0-9]{2,4}", longest=20)
    said = speaker.say(speaker.constraint(grammar), seed)
    assert said[-1] in speaker.stops
    assert re.fullmatch("(ab|c)+;[0-9]{2,4}", speaker.text(said))
    assert len(speaker.text(said)) <= 20


def test_marks_that_are_special_tokens(speaker):
    special = (("<|im_start|>", 1), ("<|endoftext|>", 0))
    call = ('<|im_start|>\n{"name": "', *GENERIC.call[1:-1], "}\n<|endoftext|>")
    form = Form(CallLayout.OBJECT, call, special=special)
    grammar = tool_grammar([MAGIC], True, form, caps=CAPS)
    constraint = speaker.constraint(grammar)
    said = speaker.say(constraint, 0)
    parser = AnswerParser(form, [MAGIC], grammar=grammar)
    parser.feed("".join(speaker.pieces(said)))
    _, answer = parser.finish(whole=True)
    assert [call.name for call in answer.calls] == ["magic"]
    assert 0 in said
    assert said[-1] == 2


def test_a_model_without_a_form_of_its_own_has_the_generic_one_and_no_thinking(speaker):
    tokenizer = TemplateTokenizer(speaker.wrapper)
    assert replace(tokenizer.call_form, special=()) == GENERIC
    assert tokenizer.reasoning is None


def test_forced_tokens_save_forwards_and_change_nothing(speaker):
    grammar = tool_grammar([MAGIC], "magic", GENERIC, caps=CAPS)
    before = speaker.forwards
    slow = speaker.say(speaker.constraint(grammar), jump=False)
    between = speaker.forwards
    fast = speaker.say(speaker.constraint(grammar), jump=True)
    assert speaker.text(fast) == speaker.text(slow)
    assert speaker.forwards - between <= 3 < between - before


def test_masks_are_what_trying_every_token_gives(speaker):
    grammar = schema_grammar(SCHEMA, caps=CAPS)
    constraint = speaker.constraint(grammar)
    trial = speaker.constraint(grammar)._matcher
    logits = mx.zeros((1, speaker.vocab_size))
    for token in speaker.say(speaker.constraint(grammar), 3, jump=False):
        allowed = set(np.flatnonzero(np.isfinite(np.array(constraint.mask(logits))[0])).tolist())
        tried = {word for word in range(speaker.vocab_size) if trial.takes([word])}
        if trial.is_accepting:
            tried |= speaker.stops
        assert allowed == tried
        assert token in allowed
        constraint.consume(token)
        trial.consume(token)


def test_after_the_end_only_the_end_token_is_left(speaker):
    constraint = speaker.constraint(regex_grammar("ab"))
    for token in speaker.wrapper.encode("ab", add_special_tokens=False):
        constraint.consume(token)
    assert constraint.finished
    assert constraint.forced()[0] in speaker.stops
    for _ in range(3):
        allowed = np.isfinite(np.array(constraint.mask(mx.zeros((1, speaker.vocab_size))))[0])
        assert set(np.flatnonzero(allowed).tolist()) == speaker.stops
        constraint.consume(min(speaker.stops))
    constraint.consume(17)
    assert constraint.finished
    assert constraint.complete
    assert constraint.forced() == []


def test_what_was_masked_is_refused(speaker):
    constraint = speaker.constraint(regex_grammar("ab"))
    with pytest.raises(ConstraintError, match="not what the grammar allows"):
        constraint.consume(speaker.wrapper.encode("x", add_special_tokens=False)[0])
    cut = speaker.constraint(regex_grammar("ab"))
    with pytest.raises(ConstraintError):
        cut.consume(min(speaker.stops))


def test_a_broken_grammar_is_refused_at_once(speaker):
    with pytest.raises(GrammarError, match="the grammar is refused"):
        speaker.constraint(Grammar("regex", "start: /(/"))


def test_a_matcher_is_built_once_for_a_grammar_and_none_is_spoilt(speaker, monkeypatch):
    built = []
    monkeypatch.setattr(speaker, "matchers", Matchers(speaker.matchers.tokenizer))
    real = matchers_module.LLMatcher
    monkeypatch.setattr(
        matchers_module, "LLMatcher", lambda *a, **k: built.append(1) or real(*a, **k)
    )
    grammars = [tool_grammar([MAGIC], "magic", GENERIC, calls=n, caps=CAPS) for n in range(1, 8)]
    first, again = (speaker.constraint(grammars[0]) for _ in range(2))
    assert len(built) == 1
    said = speaker.say(first, 0)
    assert speaker.say(again, 0) == said == speaker.say(speaker.constraint(grammars[0]), 0)
    for grammar in grammars:
        speaker.constraint(grammar)
    assert len(built) == len(grammars)
    # Only the last few are kept.
    speaker.constraint(grammars[-1])
    speaker.constraint(grammars[0])
    assert len(built) == len(grammars) + 1


def test_logits_may_have_more_columns_than_the_tokenizer_has_tokens(speaker):
    vocab_size = speaker.vocab_size + 45
    tokenizer = grammar_tokenizer(speaker.wrapper, vocab_size)
    constraint = Constraint(Matchers(tokenizer), regex_grammar("[a-z]+"), vocab_size)
    masked = np.array(constraint.mask(mx.zeros((1, vocab_size), dtype=mx.float16)))[0]
    assert masked.dtype == np.float16
    assert np.isfinite(masked[: speaker.vocab_size]).any()
    assert not np.isfinite(masked[speaker.vocab_size :]).any()


def test_reasoning_is_free_and_the_grammar_begins_behind_it(speaker):
    start, end = 5, 6
    ids = tuple(speaker.wrapper.encode("</think>", add_special_tokens=False))
    assert len(ids) > 1
    thinking = Thinking("<think>", "</think>", start_ids=(start,), end_ids=ids)
    constraint = speaker.constraint(regex_grammar("ab"), thinking=thinking)
    logits = mx.zeros((1, speaker.vocab_size))
    a = speaker.wrapper.encode("a", add_special_tokens=False)[0]
    allowed = np.flatnonzero(np.isfinite(np.array(constraint.mask(logits))[0])).tolist()
    assert {start, a} <= set(allowed)
    assert constraint.forced() == []
    for token in (start, 90, *ids[:-1], 91, *ids[:-1]):
        constraint.consume(token)
        forbidden = np.flatnonzero(~np.isfinite(np.array(constraint.mask(logits))[0])).tolist()
        assert forbidden == sorted(speaker.stops)  # a call or document is still to come
        assert not constraint.complete
    constraint.consume(ids[-1])
    allowed = np.flatnonzero(np.isfinite(np.array(constraint.mask(logits))[0])).tolist()
    assert a in allowed
    assert start not in allowed
    opened = speaker.constraint(
        regex_grammar("ab"), thinking=Thinking("<think>", "</think>", True, (start,), (end,))
    )
    assert np.isfinite(np.array(opened.mask(logits))).sum() == speaker.vocab_size - len(
        speaker.stops
    )
    opened.consume(end)
    assert np.isfinite(np.array(opened.mask(logits))).sum() < 5


def test_law_14_white_space_may_stand_before_reasoning(speaker):
    space, a = (speaker.wrapper.encode(s, add_special_tokens=False)[0] for s in (" ", "a"))
    thinking = Thinking("<think>", "</think>", False, (5,), (6,), (space,))
    logits = mx.zeros((1, speaker.vocab_size))
    constraint = speaker.constraint(regex_grammar("ab"), thinking=thinking)
    for token in (space, 5, 90, 6, space, a):
        assert np.isfinite(np.array(constraint.mask(logits))[0, token])
        constraint.consume(token)
    plain = speaker.constraint(regex_grammar("ab"), thinking=replace(thinking, start_ids=()))
    assert not np.isfinite(np.array(plain.mask(logits))[0, space])


def test_reasoning_begins_where_the_answer_does_or_nowhere(speaker):
    start, end = 5, 6
    thinking = Thinking("<think>", "</think>", start_ids=(start,), end_ids=(end,))
    constraint = speaker.constraint(regex_grammar("ab"), thinking=thinking)
    constraint.consume(speaker.wrapper.encode("a", add_special_tokens=False)[0])
    allowed = np.isfinite(np.array(constraint.mask(mx.zeros((1, speaker.vocab_size))))[0])
    assert not allowed[start]
    assert allowed.any()


def test_a_call_that_begins_as_reasoning_does_is_held_all_the_same(speaker):
    think, called = (
        speaker.wrapper.encode(text, add_special_tokens=False) for text in ("<think>", "<tool>ab")
    )
    assert think[0] == called[0]
    end = tuple(speaker.wrapper.encode("</think>", add_special_tokens=False))
    thinking = Thinking("<think>", "</think>", start_ids=tuple(think), end_ids=end)
    logits = mx.zeros((1, speaker.vocab_size))
    for said in (called, [*think, 90, *end, *called]):
        constraint = speaker.constraint(regex_grammar("<tool>ab"), thinking=thinking)
        for token in said:
            assert np.isfinite(np.array(constraint.mask(logits))[0, token])
            constraint.consume(token)
        assert constraint.finished
    constraint = speaker.constraint(regex_grammar("<tool>ab"), thinking=thinking)
    constraint.consume(called[0])
    assert np.isfinite(np.array(constraint.mask(logits))).sum() < 10


@pytest.mark.parametrize(
    "said", ["Hm.</think>ab", "Hm.</think>\nab", "a</think>\n\nab", "</think>ab"]
)
def test_reasoning_ends_with_its_mark_however_that_is_cut_into_tokens(speaker, said):
    written = [speaker.wrapper.encode(s, add_special_tokens=False) for s in ("\n", "\n\n")]
    spaces = tuple(ids[0] for ids in written if len(ids) == 1)
    thinking = Thinking("<think>", "</think>", True, end_ids=(1, 2, 3), spaces=spaces)
    merged = speaker.wrapper.encode(said, add_special_tokens=False)
    for ids in (
        merged,
        [t for c in said for t in speaker.wrapper.encode(c, add_special_tokens=False)],
    ):
        constraint = speaker.constraint(regex_grammar("ab"), thinking=thinking)
        for token in ids:
            constraint.consume(token)
        assert constraint.finished


@pytest.mark.real_model
def test_the_default_model_makes_a_forced_call(real_model_folder):
    speaker = Speaker(real_model_folder)
    question = "Use the magic tool with input 3."
    prompt = speaker.wrapper.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True
    )
    grammar = tool_grammar([MAGIC], "magic", GENERIC)
    parser = AnswerParser(GENERIC, [MAGIC], grammar=grammar)
    said = speaker.say(speaker.constraint(grammar), limit=40, prompt=prompt)
    parser.feed(speaker.text(said))
    _, answer = parser.finish(whole=said[-1] in speaker.stops)
    assert [(call.name, dict(call.arguments)) for call in answer.whole().calls] == [
        ("magic", {"input": 3})
    ]
