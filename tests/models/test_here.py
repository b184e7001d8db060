"""Models that are on this machine, as the hub's own client sees its cache, without that client."""

import json
import os
import subprocess
import sys

import pytest

from llm_mlx_promptcache.models.here import folder_here, models_in_cache, names_in_cache

COMMIT = "c" * 40
THEIRS = "from huggingface_hub.constants import HF_HUB_CACHE as c; print(c)"
OURS = "from llm_mlx_promptcache.models.here import _hub_cache as c; print(c())"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The folder of an empty cache of the hub's."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def fetched(hub, name, *, commit=COMMIT, files=("config.json", "model.safetensors"), ref=True):
    """A model as the hub's client leaves it: its revision's folder."""
    held = hub / f"models--{name.replace('/', '--')}"
    folder = held / "snapshots" / commit
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).write_text("{}")
    (held / "refs").mkdir()
    if ref:
        (held / "refs" / "main").write_text(commit)
    return folder


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"HF_HOME": "/somewhere"},
        {"HF_HOME": "~/hf"},
        {"XDG_CACHE_HOME": "/caches"},
        {"HUGGINGFACE_HUB_CACHE": "/older", "HF_HOME": "/somewhere"},
        {"HF_HUB_CACHE": "$HOME/newer", "HUGGINGFACE_HUB_CACHE": "/older"},
    ],
)
def test_the_hubs_cache_is_where_its_client_has_it(tmp_path, variables):
    environment = {"HOME": str(tmp_path), "PATH": os.defpath, **variables}
    told = [
        subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True
        ).stdout
        for script in (OURS, THEIRS)
    ]
    assert told[0] == told[1] != ""


def test_what_was_fetched_whole_is_here_as_the_client_says(hub):
    from huggingface_hub import snapshot_download

    folder = fetched(hub, "some.body/Model-1.5_b")
    assert folder_here("some.body/Model-1.5_b") == folder
    kept = snapshot_download("some.body/Model-1.5_b", cache_dir=hub, local_files_only=True)
    assert str(folder) == kept
    assert models_in_cache() == [("some.body/Model-1.5_b", folder)]


@pytest.mark.parametrize("commit", ["", "..", "../../../..", "C" * 40, "c" * 39, "c" * 40 + "/.."])
def test_a_revision_that_is_none_is_not_here(hub, commit):
    fetched(hub, "a/b")
    held = hub / "models--a--b"
    (held / "refs" / "main").write_text(commit)
    leads_to = held / "snapshots" / commit
    leads_to.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "model.safetensors"):
        (leads_to / file).write_text("{}")
    assert folder_here("a/b") is None


def test_what_is_not_whole_or_no_model_is_not_here(hub):
    fetched(hub, "no/config", files=["model.safetensors"])
    fetched(hub, "no/weights", files=["config.json"])
    fetched(hub, "no/revision", ref=False)
    folder = fetched(hub, "no/shard", files=["config.json", "model-1-of-2.safetensors"])
    shards = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(shards))
    (hub / "datasets--a--b").mkdir()
    (hub / "version.txt").touch()
    assert models_in_cache() == []
    assert sorted(names_in_cache()) == ["no/config", "no/revision", "no/shard", "no/weights"]
    (folder / "model-2-of-2.safetensors").touch()
    assert folder_here("no/shard") == folder


def test_no_cache_of_the_hub_holds_nothing(hub):
    assert models_in_cache() == []
    assert folder_here("a/b") is None
