"""`clear`: what is pinned is asked for first, and what can't be cleared is said."""

import sys
from pathlib import Path

import pytest
from terminals import on_a_terminal

OURS = (sys.executable, "-c", "from llm_mlx_promptcache.commands import mlx_cached as c; c()")
LIMIT = ("-o", "max_tokens", "4")


@pytest.fixture(scope="module")
def pinned_once(new_home, tiny_llama):
    """A home with two models, and one pinned span of the first."""
    home = new_home()
    for name, seed in (("one", 0), ("two", 1)):
        home.ours("add", str(tiny_llama(seed=seed)), "--name", name)
        home.llm("-m", f"mlx-cached/{name}", "Hello capital of the user", *LIMIT)
    home.ours("pin", home.told("tree", "--model", "one")[0]["id"])
    return home


@pytest.fixture
def pinned(pinned_once, tmp_path):
    """A copy of it."""
    return pinned_once.copied_to(tmp_path / "home")


def typed(home, text, *arguments):
    """Run `clear` on a terminal where the user types this; returns its status and the screen."""
    return on_a_terminal([*OURS, "clear", *arguments], home.environment(), typed=text)


@pytest.mark.parametrize("which", [[], ["--model", "one"]])
def test_c13_what_is_pinned_is_not_cleared_without_a_word(pinned, which):
    before = pinned.told("tree")
    (span,) = [span for span in before if span["pinned"]]
    (line,) = pinned.ours("clear", *which, status=1)[1].splitlines()
    assert "nothing was cleared: 1 pinned span" in line
    assert span["id"][:8] in line
    assert "--yes" in line
    assert pinned.ours("clear", *which, "--json", status=1)[0] == ""
    assert pinned.told("tree") == before
    assert pinned.told("clear", *which, "--yes")["freed"] > 0
    assert not any(span["pinned"] for span in pinned.told("tree"))


def test_c13_a_user_at_a_terminal_is_asked_once(pinned):
    before = pinned.told("tree")
    for said in ("n\n", "\x04"):
        status, shown = typed(pinned, said)
        assert (status, shown.count("1 pinned span")) == (1, 1)
        assert "freed" not in shown
        assert pinned.told("tree") == before
    status, shown = typed(pinned, "y\n")
    assert (status, shown.count("1 pinned span")) == (0, 1)
    assert "freed" in shown
    assert pinned.told("tree") == []


@pytest.mark.parametrize("which", [["--model", "two"], ["--older-than", "0m"], ["-y"]])
def test_c13_nobody_is_asked_where_what_is_pinned_stays_or_its_end_was_said(pinned, which):
    status, shown = typed(pinned, "", *which)
    assert status == 0
    assert shown.startswith("freed ")
    assert any(span["pinned"] for span in pinned.told("tree")) == (which != ["-y"])


def test_a_home_in_which_nothing_can_be_made_has_no_host_and_nothing_to_clear(bare_home):
    """As on a disk that is read only; root may write there, so a file stands in the way."""
    folder = bare_home.folder / "mlx" / "cache"
    folder.touch()
    assert bare_home.ours("ps")[0] == bare_home.ours("stop")[0] == "no host runs"
    out, error = bare_home.ours("clear", status=1)
    assert out == "freed 0 B"
    assert error.splitlines()[-1].startswith("Error: the disk is not cleared; make that folder")
    folder.unlink()


def test_a_question_to_the_host_makes_no_folder_for_one(bare_home):
    for command in ("ps", "stop", "stats", "tree", "clear"):
        bare_home.ours(command)
    assert not (Path(bare_home.told("path")["path"]) / "host").exists()
