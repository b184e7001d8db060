"""The cache as a whole: what programs are told of it, and the limits that the user sets."""

import errno
import json
import os
from pathlib import Path

import pytest

from llm_mlx_promptcache.cache.disk.store import DiskStore

LIMIT = ("-o", "max_tokens", "4")


@pytest.fixture(scope="module")
def asked_once(new_home, tiny_llama):
    """A home with a model, and one answer of it."""
    home = new_home()
    home.ours("add", str(tiny_llama()), "-a", "t")
    home.llm("-m", "t", "Hello capital of the user", *LIMIT)
    return home


def test_stats_for_programs(asked):
    stats = asked.told("stats")
    (model,) = stats["models"]
    assert model["spans"] == stats["spans"] > 0
    assert model["bytes"] == stats["bytes"] > 0
    assert model["superseded_bytes"] == 0
    assert stats["folder"] == asked.told("path")["path"] == asked.ours("path")[0]


def test_stats_shows_what_nobody_can_open_any_more(asked):
    (model,) = asked.told("stats")["models"]
    store = DiskStore(asked.told("path")["path"])
    store.label("other", model["model"], "the model with other weights")
    store.tend()
    store.close()
    (model,) = asked.told("stats")["models"]
    assert model["superseded_bytes"] == model["bytes"] > 0
    assert asked.ours("stats")[0].rstrip().endswith("superseded")


def test_clear_takes_a_registered_name(asked):
    before = asked.told("stats")["bytes"]
    assert asked.told("clear", "--model", "t") == {"freed": before, "freed_memory": 0}
    assert asked.told("stats")["spans"] == 0


@pytest.mark.parametrize("name", ["nobody", "embedded", "default", "", "a"])
def test_clear_of_what_is_not_stored_is_one_line(asked, name):
    before = asked.told("tree")
    (line,) = asked.ours("clear", "--model", name, status=1)[1].splitlines()
    assert line.startswith(f"Error: nothing is stored of {name!r}")
    assert asked.told("tree") == before


def test_clear_takes_a_folder_however_it_is_spelled(asked, monkeypatch):
    (model,) = asked.told("stats")["models"]
    folder = Path(model["model"])
    monkeypatch.chdir(folder.parent)
    assert asked.told("tree", "--model", folder.name) == asked.told("tree")
    assert asked.told("clear", "--model", f"./{folder.name}/")["freed"] == model["bytes"]


def test_clear_takes_a_namespace(asked):
    (namespace,) = {span["namespace"] for span in asked.told("tree")}
    asked.ours("clear", "--model", namespace[:8])
    assert asked.told("stats")["spans"] == 0


def test_check_for_programs(asked):
    assert asked.told("check") == {"wrong": [], "fixed": False, "left": []}
    file = next((asked.folder / "mlx" / "cache" / "spans").glob("*.safetensors"))
    file.write_bytes(b"damaged")
    out, error = asked.ours("check", "--json", status=1)
    assert len(json.loads(out)["wrong"]) == 1
    assert "--fix" in error
    fixed = asked.told("check", "--fix")
    assert fixed["fixed"]
    assert fixed["left"] == []
    assert asked.told("check") == {"wrong": [], "fixed": False, "left": []}


def test_check_says_what_is_left_where_it_can_not_be_read_now(asked, monkeypatch):
    """A device that fails is no damage: nothing of it is fixed, and the status says so."""
    spans = asked.told("stats")["spans"]

    def fails(descriptor, buffers):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "readv", fails)
        out, error = asked.ours("check", "--fix", status=1)
        assert "can't be read just now" in out
        assert f"fixed 0; {spans} left" in error
        told = json.loads(asked.ours("check", "--fix", "--json", status=1)[0])
    assert (told["fixed"], len(told["left"])) == (False, spans)
    assert asked.ours("check", "--fix")[0].strip() == "all is well"
    assert asked.told("stats")["spans"] == spans


def test_limits_are_kept_and_hold(asked):
    asked.ours("settings", "--memory", "2GB", "--disk", "30kB", "--max-age", "2w")
    asked.ours("settings", "--keep", "30m")
    asked.ours("settings", "--ahead", "off")
    assert "off" in asked.ours("settings")[0]
    limits = {"memory": "2GB", "disk": "30kB", "max_days": 14, "keep": "30m", "ahead": False}
    assert asked.told("settings") == limits
    assert asked.told("stats")["budget"] == 30_000
    for word in ("and", "of", "Hello"):
        asked.llm("-m", "t", f"{word} " * 12, *LIMIT)
    assert 0 < asked.told("stats")["bytes"] <= 30_000
    asked.ours("settings", "--memory", "auto", "--disk", "auto", "--max-age", "auto")
    asked.ours("settings", "--keep", "auto", "--ahead", "auto")
    assert asked.told("settings") == dict.fromkeys(("memory", "disk", "max_days", "keep", "ahead"))
    assert "auto" in asked.ours("settings")[0]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--memory", "much"),
        ("--disk", "-1"),
        ("--max-age", "old"),
        ("--max-age", "0d"),
        ("--keep", "5"),
    ],
)
def test_a_limit_that_is_none_is_one_line_and_changes_nothing(bare_home, option, value):
    (line,) = bare_home.ours("settings", f"{option}={value}", status=1)[1].splitlines()
    assert line.startswith(f"Error: {option} is ")
    assert set(bare_home.told("settings").values()) == {None}


@pytest.mark.parametrize("age", ["1000000d", "99999999999999999999w", "9" * 400 + "h"])
def test_an_age_that_no_cache_has_is_one_line(bare_home, age):
    for command in (["clear", "--older-than", age], ["settings", "--max-age", age]):
        (line,) = bare_home.ours(*command, status=1)[1].splitlines()
        assert line.startswith(f"Error: {command[1]} is {age[:9]!r}"[:-1])
        assert line.endswith("give less than 1,000,000 days")
