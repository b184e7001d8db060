"""`llm mlx-cached doctor` where something is odd: the table is whole, and names nobody."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.commands import doctor, doctor_places, mlx_cached
from llm_mlx_promptcache.commands.doctor_diagnosis import Diagnosis, Health
from llm_mlx_promptcache.commands.doctor_model import model_diagnoses
from llm_mlx_promptcache.config import RegisteredModel, Settings, save_settings
from llm_mlx_promptcache.engine.pool import DISK_SWITCH

NOBODY = "nobody/nothing"  # a hub id that is not here: nothing is loaded


def lines_of(told):
    """The lines that were told, by what was looked at."""
    return {(line["part"], line["what"]): line for line in told["lines"]}


def raises(*_):
    raise RuntimeError("no such thing in /home/jane/x")


def lines_that_raise(*_):
    yield raises()


@pytest.mark.parametrize(
    ("name", "part", "others"),
    [
        ("machine_diagnoses", "machine", {"folders", "disk", "host", "model"}),
        ("folder_diagnoses", "folders", {"machine", "disk", "host", "model"}),
        ("disk_diagnoses", "disk", {"machine", "folders", "host", "model"}),
        ("host_seen", "host", {"machine", "folders", "disk", "model"}),
        ("model_diagnoses", "model", {"machine", "folders", "disk", "host"}),
    ],
)
def test_what_a_part_raises_is_a_line_of_it(name, part, others, bare_home, monkeypatch):
    monkeypatch.setattr(doctor, name, raises if name == "host_seen" else lines_that_raise)
    told = bare_home.told("doctor", "-m", NOBODY, status=1)
    line = lines_of(told)[part, "all of it"]
    assert line["health"] == "wrong"
    assert line["found"] == "it can't be looked at: no such thing in /…"
    assert {line["part"] for line in told["lines"]} == {part, *others}


def test_a_home_of_nobody_is_told_in_the_table(monkeypatch):
    monkeypatch.setenv("LLM_MLX_CACHED_HOME", "~nobody-of-this-name/x")
    done = CliRunner().invoke(mlx_cached, ["doctor", "--json", "-m", NOBODY])
    assert done.exit_code == 1
    lines = lines_of(json.loads(done.stdout))
    assert "nobody has that home" in lines["folders", "all of it"]["found"]
    assert ("machine", "versions") in lines
    assert "nobody-of-this-name" not in done.output


def test_a_user_of_whom_no_home_is_known_is_told_in_the_table(monkeypatch):
    """As in a container whose user has no entry: every folder is unknown."""

    def homeless(*_, **__):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("LLM_MLX_CACHED_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    for name in ("user_cache_dir", "user_data_dir"):
        monkeypatch.setattr(f"platformdirs.{name}", homeless)
    done = CliRunner().invoke(mlx_cached, ["doctor", "--json", "-m", NOBODY])
    assert done.exit_code == 1
    found = lines_of(json.loads(done.stdout))["folders", "all of it"]["found"]
    assert "LLM_MLX_CACHED_HOME is not set, nor is HOME" in found


def test_p7_what_is_warned_of_meanwhile_has_no_path(bare_home):
    cache = bare_home.folder / "mlx" / "cache"
    bare_home.ours("path")
    (cache / "index.sqlite").mkdir(mode=0o700)
    _, error = bare_home.ours("doctor", "-m", NOBODY, status=1)
    assert "doctor: the index in $LLM_MLX_CACHED_HOME/cache was damaged" in error
    assert str(bare_home.folder) not in error


def test_weights_that_are_links_to_nothing_are_a_line(quick_home, tiny_llama):
    folder = tiny_llama()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "nothing")
    line = lines_of(quick_home.told("doctor", "-m", str(folder), status=1))["model", "model"]
    assert line["health"] == "wrong"
    assert "the model in the model's folder can't be used" in line["found"]


@pytest.mark.parametrize(
    "said",
    ["mergers", "merger's", "merger\nx", "mlx-cached/mergers", "default@merger", "merger.txt"],
)
def test_p7_no_name_that_the_user_gave_is_told(said, quick_home, tmp_path, monkeypatch):
    """Neither one that is no model's, nor those that are near it; and no word of ours is lost."""
    models = (RegisteredModel(name="merger", reference="a/b", aliases=("mergerin",)),)
    save_settings(Settings(default_model="a/b", models=models))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "merger.txt").write_text("")
    out, error = quick_home.ours("doctor", "-m", said, status=1)
    assert "no model here has that name, alias, folder or adapter" in out
    assert "merger" not in (out + error).casefold()


@pytest.mark.parametrize("folder", ["/gone/private, old", "~/private, old"])
def test_a_default_model_whose_folder_is_gone_is_wrong(folder, quick_home):
    save_settings(Settings(default_model=folder))
    line = lines_of(quick_home.told("doctor", status=1))["model", "model"]
    assert line["found"] == "the model's folder is no folder any more"
    assert "llm mlx-cached default" in line["todo"]


def test_a_model_over_several_machines_is_measured_on_none(tmp_path):
    (line,) = model_diagnoses("served:big", tmp_path, 0)
    assert line.health is Health.NOTE
    assert "several machines" in line.found


def test_a_disk_that_is_switched_off_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv(DISK_SWITCH, "0")
    line = doctor_places.room(DiskStore(tmp_path))
    assert line.health is Health.NOTE
    assert DISK_SWITCH in line.todo


@pytest.mark.parametrize("charset", ["utf-8", "latin-1", "ascii"])
def test_json_is_json_in_any_character_set(charset, bare_home, monkeypatch):
    """With signs that it does not have, and a file's name that is no text."""
    said = "\xe9 \u2026 \U0001f600 \udcff"
    line = Diagnosis("machine", "device", said)
    monkeypatch.setattr(doctor, "machine_diagnoses", lambda: iter([line]))
    arguments = ["doctor", "--json", "-m", NOBODY]
    done = CliRunner(charset=charset).invoke(mlx_cached, arguments, env=bare_home.own())
    assert lines_of(json.loads(done.stdout_bytes))["machine", "device"]["found"] == said


def test_a_table_has_all_lines_in_a_character_set_without_its_signs(bare_home, monkeypatch):
    monkeypatch.setattr(doctor, "machine_diagnoses", lines_that_raise)
    arguments = ["doctor", "-m", NOBODY]
    done = CliRunner(charset="latin-1").invoke(mlx_cached, arguments, env=bare_home.own())
    assert done.exit_code == 1
    assert "no such thing in /\\u2026" in done.stdout
    assert "lines in" in done.stdout


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_a_stream_that_is_closed_ends_no_command(name, bare_home, monkeypatch):
    for variable, value in bare_home.own().items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(sys, name, None)
    mlx_cached.main(["doctor", "-m", NOBODY], standalone_mode=False)
    getattr(sys, name).close()  # the one that leads nowhere
