"""Law 13: what had to be moved is told once a process, and stands in each answer's metadata."""

import logging
import uuid
import warnings

import pytest
from scripted_engine import finished

from langchain_adapter import ChatMLXCached
from llm_mlx_promptcache.engine.events import TextDelta
from llm_mlx_promptcache.engine.notes import new_notes
from llm_mlx_promptcache.engine.wire import from_json, to_json
from llm_mlx_promptcache.llm_adapter.models import MlxCached


@pytest.fixture
def note():
    """One that no other test has told."""
    return f"something stands elsewhere ({uuid.uuid4()})"


def test_law_13_llm_tells_a_note_once_and_logs_it_with_each_answer(scripted, caplog, note):
    scripted.notes = (note,)
    with caplog.at_level(logging.WARNING):
        answers = [MlxCached().prompt("Go.") for _ in range(3)]
        assert [answer.text() for answer in answers] == ["Yes."] * 3
    assert [record.getMessage() for record in caplog.records] == [note]
    assert all(answer.response_json["notes"] == [note] for answer in answers)


@pytest.mark.parametrize("streams", [False, True])
def test_law_13_langchain_warns_once(engine, note, streams):
    engine.events = [TextDelta("Hello"), finished("Hello", notes=(note,))]
    chat = ChatMLXCached(model="some/model")

    def ask():
        if not streams:
            return chat.invoke("Go.")
        first, *rest = chat.stream("Go.")
        return sum(rest, first)

    with pytest.warns(UserWarning, match="stands elsewhere") as told:
        answers = [ask(), ask()]
    assert len(told) == 1
    assert all(answer.response_metadata["notes"] == [note] for answer in answers)


def test_an_answer_without_notes_warns_of_nothing(engine):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "notes" not in ChatMLXCached(model="some/model").invoke("Go.").response_metadata


def test_another_model_is_told_of_too_and_notes_travel(note):
    assert new_notes("a", [note, note]) == [note]
    assert new_notes("a", [note]) == []
    assert new_notes("b", [note]) == [note]
    event = finished("Hello", notes=(note,))
    assert from_json(to_json(event)) == event
