"""Reuse as `llm`'s users see it: in the log, in explain, and one line where it was lost."""

import logging

import pytest
from real_families import Played, every_family

from llm_mlx_promptcache.engine import notes

SYSTEM = "You keep a lighthouse, and answer in few words of a sailor's."
LLAMA = next(one for one in every_family() if one.id == "Llama 3.1")


@pytest.fixture
def home(tmp_path, quick_home, monkeypatch):
    """A user with a model that always says the same."""
    from llm_mlx_promptcache.config import Settings, save_settings

    monkeypatch.setattr(notes, "_told", {})
    played = Played(LLAMA.values[0])
    folder = played.folder(tmp_path / "played", {"": played.words("The light burns.")})
    save_settings(Settings(default_model=str(folder)))
    return quick_home


def lines(caplog):
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]


def test_a_healthy_turn_and_one_that_lost_its_beginning(home, caplog):
    home.llm("-m", "mlx-cached", "-s", SYSTEM, "Is it lit?")
    first = home.last()["response_json"]
    assert (first["reuse"], first["cache"]) == (
        {"state": "new"},
        "no cached prompt starts like this",
    )
    home.llm("-c", "And the sea?")
    healthy = home.last()
    assert healthy["response_json"]["reuse"] == {"state": "healthy"}
    assert healthy["response_json"]["cache"].startswith("healthy: ")
    assert healthy["details"]["prompt_tokens_details"] == {
        "cached_tokens": healthy["details"]["cached"]
    }
    assert home.told("explain")["reuse"] == {"state": "healthy"}
    assert lines(caplog) == []
    home.llm("-c", "-s", "You keep a harbour.", "And the wind?")
    lost = home.last()["response_json"]
    assert {**lost["reuse"], "lost": 0} == {
        "state": "lost",
        "reason": "system",
        "message": 0,
        "role": "system",
        "lost": 0,
    }
    (line,) = lines(caplog)
    assert line == f"reuse {lost['cache']} (told once a conversation)"
    assert "harbour" not in line
    told = home.told("explain")
    assert (told["reuse"], told["why"]) == (lost["reuse"], lost["cache"])
    assert f"were prefilled: {lost['cache']}\n" in home.ours("explain")[0]
    # In another process, too, the conversation knows that its user was told.
    notes._told.clear()
    home.llm("-c", "-s", "You keep a boat.", "And the moon?")
    assert home.last()["response_json"]["reuse"]["reason"] == "system"
    assert len(lines(caplog)) == 1


def test_lost_tools_are_told_once_and_by_name(home, caplog):
    tool = "def look(where: str) -> str:\n    'Look there.'\n    return where"
    home.llm("-m", "mlx-cached", "-s", SYSTEM, "Is it lit?", "--functions", tool)
    home.llm("-c", "And the sea?")
    assert home.last()["response_json"]["reuse"]["reason"] == "tools"
    (line,) = lines(caplog)
    assert "had the tools look" in line
