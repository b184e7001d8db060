"""Prefilled divided by new is 1.00, to the token, whatever a conversation does (`docs/reuse.md`)."""

import importlib.util
import sys
from pathlib import Path

import pytest

from llm_mlx_promptcache.cache.disk import DiskStore
from llm_mlx_promptcache.engine.chat_tokenizer import TemplateTokenizer

_path = Path(__file__).parent / "conversations.py"
_spec = importlib.util.spec_from_file_location("conversations", _path)
conversations = sys.modules["conversations"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(conversations)

ALL = [*conversations.SCRIPTS, *conversations.THINKING_SCRIPTS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    write = conversations.write_model
    return {thinks: str(write(tmp_path_factory.mktemp("model"), thinks)) for thinks in (0, 1)}


class Process:
    """An engine with a cache of its own over a store that outlives it."""

    def __init__(self, *place):
        self._place = place
        self._engine = conversations.engine_over(*place)

    def ask(self, history, wanted):
        return conversations.answer(self._engine, history, wanted)

    def restart(self):
        self.close()
        self._engine = conversations.engine_over(*self._place)

    def close(self):
        self._engine.close()


@pytest.mark.parametrize("restarts", [False, True], ids=["one process", "restarts"])
@pytest.mark.parametrize("kind", conversations.KINDS)
@pytest.mark.parametrize("script", ALL, ids=lambda s: s.name + ", thinking" * s.thinking)
def test_prefilled_is_what_is_new(folders, tmp_path, script, kind, restarts):
    folder = folders[script.thinking]
    process = Process(folder, kind, tmp_path)
    tokenizer = TemplateTokenizer(conversations.load_model(folder).tokenizer)
    played = conversations.play(
        script,
        process.ask,
        tokenizer,
        cuttable=kind == "rows",
        restart=process.restart if restarts else None,
    )
    process.close()
    assert [one.prefilled for one in played] == [one.new for one in played]
    assert DiskStore(tmp_path).check() == []


def test_the_scripts_answers_are_not_what_rendering_their_text_gives(folders, tmp_path):
    process = Process(folders[False], "rows", tmp_path)
    tokenizer = TemplateTokenizer(conversations.load_model(folders[False]).tokenizer)
    for script in (conversations.SCRIPTS[0], conversations.SCRIPTS[2]):
        played = conversations.play(script, process.ask, tokenizer, cuttable=True)
        assert all(one.drifted for one in played), script.name
    process.close()


def test_eight_that_ask_together_compute_their_prefix_once(folders, tmp_path):
    engine = conversations.engine_over(folders[False], "rows", tmp_path)
    finished = conversations.together(engine, 8, prefix=1000)
    engine.close()
    prompts = [one.usage.prompt for one in finished]
    parts = conversations.prompts_of(folders[False], 8, prefix=1000)
    shared = min(conversations.common(parts[0], other) for other in parts[1:])
    assert shared >= 1000
    assert prompts == [len(ids) for ids in parts]
    assert sum(one.usage.prefilled for one in finished) == shared + sum(
        len(ids) - shared for ids in parts
    )
