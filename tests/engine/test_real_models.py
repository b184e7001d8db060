"""The models that people run: real tokenizers and templates, the engine, and a played script.

What each family must do is in conformance_cells.py, and as a table in docs/models.md.
"""

import random

import conformance_cells
import mlx.core as mx
import pytest
from conformance_cells import CELLS, Verdict
from conformance_trial import FIND, FORCED, LONG, TIDE, TWO, right_calls
from played_families import FAMILIES, THOUGHT, TOOL

from llm_mlx_promptcache.chat.messages import Message

RANDOM = {
    "type": "function",
    "function": {
        "name": "try_out",
        "description": "Takes a value of each kind.",
        "parameters": {
            "type": "object",
            "properties": {
                "words": {"type": "string"},
                "count": {"type": "integer"},
                "kind": {"enum": ["a", "b c"]},
                "flags": {"type": "array", "items": {"type": "boolean"}},
                "maybe": {"type": ["boolean", "null"]},
            },
            "required": ["words", "kind"],
        },
    },
}
# What is wrong and known, by family and cell: the cause.
KNOWN: dict[tuple[str, str], str] = {}


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda one: one.name)
def trial(request, tmp_path_factory, real_model_folder, shared_views):
    """Each family's played model, one after the other."""
    folder = tmp_path_factory.mktemp("played") / "model"
    with conformance_cells.played(request.param, folder, real_model_folder) as made:
        yield made


@pytest.fixture(scope="module")
def grammar_view(trial):
    """The family's tokenizer as the grammar engine sees it; the one that answers are held to."""
    from llm_mlx_promptcache.engine import constraint

    return constraint.grammar_tokenizer(trial.loaded.tokenizer, trial.loaded.vocab_size)


@pytest.fixture
def thinking(trial):
    """One that reasons."""
    if trial.family.reasons is None:
        pytest.skip("this family does not reason")
    return trial


def test_law_14_every_cell_is_right_or_a_known_exception(trial):
    cells = conformance_cells.row(trial)
    assert list(cells) == list(CELLS)
    wrong = {name: cell.why for name, cell in cells.items() if cell.verdict is Verdict.WRONG}
    known = {cell for name, cell in KNOWN if name == trial.family.name}
    assert not {name: why for name, why in wrong.items() if name not in known}
    assert known == set(wrong), "a known exception has become right: take it out of KNOWN"


def test_thinking_that_is_never_closed_ends_where_the_model_ends(thinking):
    last = thinking.ask("Do only think", tools=(TOOL,), thinking=True)
    assert (last.reasoning, last.text, last.reason) == (THOUGHT, "", "stop")


@pytest.mark.parametrize("how", [{}, {"tool_choice": "any"}])
def test_a_call_inside_thinking_is_read(thinking, how):
    if thinking.family.words:
        pytest.skip("a channel's message ends where another one begins")
    last = thinking.ask("Call in thought", tools=(FIND, TOOL), thinking=True, **how)
    [call] = last.tool_calls
    assert (call.name, dict(call.arguments)) == FORCED
    assert (last.reasoning, last.text, last.invalid_calls) == (THOUGHT, "", ())


def test_law_14_an_argument_may_be_as_long_as_the_answer(trial):
    right_calls(trial, trial.ask("Call at length", tools=(FIND, TIDE)), [LONG])
    last = trial.ask("Call at length", tools=(FIND, TIDE), tool="find_place")
    right_calls(trial, last, [LONG])


@pytest.mark.parametrize(
    ("said", "name", "error"),
    [
        ("Call by mistake", "find_palace", "no tool has this name"),
        ("Call and forget", "tide", "its argument harbour is missing"),
    ],
)
def test_law_14_a_call_that_can_not_be_made_comes_as_one(trial, said, name, error):
    last = trial.ask(said, tools=(FIND, TIDE))
    [call] = last.invalid_calls
    assert (call.name, call.error) == (name, error)
    assert "Paris" in call.text
    assert (last.text, last.tool_calls) == ("", ())


def test_no_more_calls_are_made_than_may_be(trial):
    if "parallel calls" in trial.family.lacks:
        pytest.skip("this family makes one call an answer")
    tools = (FIND, TIDE)
    right_calls(trial, trial.ask("Call twice", tools=tools), TWO)
    last = trial.ask("Call twice", tools=tools, max_calls=1)
    right_calls(trial, last, TWO[:1])
    result = Message("tool", "There it is: three metres", tool_call_id=last.tool_calls[0].id)
    again = trial.ask("Call twice", last, result, tools=tools)
    assert again.text == "The result is read."


def test_grammars_know_which_tokens_are_special(trial, grammar_view):
    """Our rule of which added tokens need their ids in a grammar is llguidance's own."""
    inner = trial.loaded.tokenizer._tokenizer
    for token, added in inner.added_tokens_decoder.items():
        text = str(added)
        ours = added.special or (text[0] == "<" and text[-1] == ">")
        assert ours == grammar_view.is_special_token(token), text


def test_law_14_random_forced_calls_are_read_back(trial, grammar_view):
    """Whatever a grammar lets through, chosen at random, is a call that fits its tool's schema."""
    from llm_mlx_promptcache.chat.answer_parser import AnswerParser
    from llm_mlx_promptcache.chat.grammar import Caps, tool_grammar
    from llm_mlx_promptcache.chat.schema_check import misfits
    from llm_mlx_promptcache.engine.constraint import Constraint, Matchers
    from llm_mlx_promptcache.models.chat_tokenizer import TemplateTokenizer

    tokenizer = TemplateTokenizer(trial.loaded.tokenizer)
    form = tokenizer.call_form
    if form.channels is not None:
        pytest.skip("reasoning without an end may come first")
    grammar = tool_grammar([RANDOM], True, form, caps=Caps(string=12, items=2))
    words = trial.loaded.vocab_size
    matchers = Matchers(grammar_view)
    seed = random.randrange(1 << 30)
    print("seed", seed)
    mx.random.seed(seed)
    for _ in range(4):
        constraint, ids = Constraint(matchers, grammar, words), []
        while not constraint.finished:
            token = int(mx.argmax(constraint.mask(mx.random.normal((1, words)))))
            constraint.consume(token)
            ids += [token] * (token not in tokenizer.stop_ids)
        text = tokenizer.decode(ids)
        parser = AnswerParser(form, [RANDOM], grammar=grammar)
        parser.feed(text)
        answer = parser.finish(whole=True)[1]
        assert (answer.text, answer.invalid) == ("", ()), text
        [call] = answer.calls
        assert not misfits(dict(call.arguments), RANDOM["function"]["parameters"]), text
        assert call.arguments["words"] in text or form.as_json
