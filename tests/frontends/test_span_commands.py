"""Stored spans, as a tree that can be read and pinned; texts only if they are asked for."""

import json
from pathlib import Path

import pytest

LIMIT = ("-o", "max_tokens", "4")
SYSTEM = "the answer of the system"


@pytest.fixture(scope="module")
def asked_once(new_home, tiny_llama):
    """A home whose cache holds a shared beginning and two ends."""
    home = new_home()
    home.ours("default", str(tiny_llama()))
    home.llm("-s", SYSTEM, "-m", "mlx-cached", "Hello capital of the user", *LIMIT)
    home.llm("-s", SYSTEM, "-m", "mlx-cached", "and other words", *LIMIT)
    return home


def test_the_tree_holds_each_token_once(asked):
    spans = asked.told("tree")
    stats = asked.told("stats")
    assert len(spans) == stats["spans"]
    assert sum(span["end"] - span["start"] for span in spans) == stats["tokens"]
    assert sum(span["bytes"] for span in spans) == stats["bytes"]
    known = {span["id"]: span for span in spans}
    roots = [span for span in spans if span["parent"] is None]
    assert len(roots) == 1  # both ends hang on what they share
    for span in spans:
        if span["parent"] is not None:
            parent = known[span["parent"]]
            assert parent["start"] < span["start"] <= parent["end"]


def test_the_tree_as_lines(asked):
    title, *lines = asked.ours("tree")[0].splitlines()
    assert title.startswith(asked.ours("default")[0])
    spans = asked.told("tree")
    assert len(lines) == len(spans)
    for span in spans:
        (line,) = [line for line in lines if span["id"][:8] in line]
        assert f"  {span['start']}-{span['end']}  {span['tier']}  " in line


def test_text_is_shown_only_where_it_is_asked_for(asked):
    assert "capital" not in asked.ours("tree")[0] + json.dumps(asked.told("tree"))
    assert SYSTEM in asked.ours("tree", "--text")[0]
    assert any(SYSTEM in span["text"] for span in asked.told("tree", "--text"))


def test_text_without_the_model_is_left_out(asked, tmp_path):
    moved = Path(asked.ours("default")[0]).rename(tmp_path / "moved")
    try:
        told = asked.ours("tree", "--text")[0]
        spans = asked.told("tree", "--text")
    finally:
        moved.rename(asked.ours("default")[0])
    assert "Hello" not in told
    assert len(spans) == asked.told("stats")["spans"]


def test_the_tree_of_one_model(asked, tiny_llama):
    first = asked.told("tree")
    asked.ours("add", str(tiny_llama(seed=5)), "-a", "other")
    asked.llm("-m", "other", "Hello", *LIMIT)
    others = asked.told("tree", "--model", "other")
    assert others
    assert len(asked.told("tree")) == len(first) + len(others)
    assert {span["id"] for span in others}.isdisjoint(span["id"] for span in first)
    namespace = others[0]["namespace"]
    assert asked.told("tree", "--model", namespace[:8]) == others
    for name in ("nobody", namespace[:7], ""):
        for form in ((), ("--json",)):
            (line,) = asked.ours("tree", "--model", name, *form, status=1)[1].splitlines()
            assert line.startswith(f"Error: nothing is stored of {name!r}; ")


def test_a_pinned_path_stays_over_any_budget_until_it_is_unpinned(asked):
    spans = asked.told("tree")
    leaf = next(s for s in spans if all(o["parent"] != s["id"] for o in spans))
    told = asked.told("pin", leaf["id"][:8])
    assert told == {"id": leaf["id"], "pinned": True, "tokens": leaf["end"]}
    assert "pinned" in asked.ours("tree")[0]
    asked.ours("pin", leaf["id"])  # twice is no error
    path, at = set(), leaf
    while at is not None:
        path.add(at["id"])
        at = next((s for s in spans if s["id"] == at["parent"]), None)
    room = sum(s["bytes"] for s in spans if s["id"] in path) + 1000
    asked.ours("settings", "--disk", str(room))
    asked.llm("-m", "mlx-cached", "of the answer", *LIMIT)
    assert path <= {s["id"] for s in asked.told("tree")}
    asked.ours("unpin", leaf["id"][:8])
    assert not any(s["pinned"] for s in asked.told("tree"))
    assert asked.ours("check")[0] == "all is well"


@pytest.mark.parametrize("name", ["", "0", "zzzzzzzz", "x" * 40])
def test_an_id_that_is_none_is_one_line(asked, name):
    (line,) = asked.ours("pin", name, status=1)[1].splitlines()
    assert line.startswith("Error: no span has the id")
