"""The models that people run: real tokenizers and templates, the engine, and a played script.

What each family must do is in conformance_cells.py, and as a table in docs/models.md.
"""

import conformance_cells
import pytest
from conformance_cells import CELLS, Verdict
from conformance_trial import FIND, FORCED
from played_families import FAMILIES, THOUGHT, TOOL

# What is wrong and known, by family and cell: the cause.
KNOWN: dict[tuple[str, str], str] = {}


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda one: one.name)
def trial(request, tmp_path_factory, real_model_folder):
    """Each family's played model, one after the other."""
    folder = tmp_path_factory.mktemp("played") / "model"
    with conformance_cells.played(request.param, folder, real_model_folder) as made:
        yield made


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


def test_grammars_know_which_tokens_are_special(trial):
    """Our rule of which added tokens need their ids in a grammar is llguidance's own."""
    from llm_mlx_promptcache.engine.constraint import grammar_tokenizer

    inner = trial.loaded.tokenizer._tokenizer
    view = grammar_tokenizer(trial.loaded.tokenizer, len(inner))
    for token, added in inner.added_tokens_decoder.items():
        text = str(added)
        ours = added.special or (text[0] == "<" and text[-1] == ">")
        assert ours == view.is_special_token(token), text
