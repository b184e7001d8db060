"""`llm mlx-cached doctor`: each check seen right and seen wrong, and nothing of the user's told."""

import json
import os
import platform
import re
import sys
from pathlib import Path

import pytest

from llm_mlx_promptcache.cache.disk import files
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.commands import (
    doctor_disk,
    doctor_machine,
    doctor_model,
    doctor_places,
)
from llm_mlx_promptcache.commands.doctor_diagnosis import Diagnosis, Health
from llm_mlx_promptcache.commands.doctor_model import diagnoses
from llm_mlx_promptcache.engine.measurements import (
    Apart,
    BatchBesideAlone,
    NotFound,
    NotInTime,
    NotKept,
    RestoreBesideMemory,
    Speeds,
    WarmBesideCold,
)

SECRET = "capital of the user"
NOBODY = "nobody/nothing"  # a hub id that is not here: nothing is loaded
EVERY_LINE = [
    ("machine", "versions"),
    ("machine", "device"),
    ("machine", "memory"),
    ("folders", "folder of cache"),
    ("folders", "folder of models and settings"),
    ("folders", "files of the cache"),
    ("folders", "backups"),
    ("disk", "room"),
    ("disk", "index"),
    ("host", "runs"),
    ("disk", "reads"),
    ("model", "model"),
    ("model", "speed"),
    ("model", "warm beside cold"),
    ("model", "warm beside one go"),
    ("model", "restored beside memory"),
    ("model", "together beside alone"),
]


@pytest.fixture(scope="module")
def asked_once(new_home, tiny_llama):
    """A home with a model, and one answer of it."""
    home = new_home()
    home.ours("default", str(tiny_llama()))
    home.llm("-m", "mlx-cached", f"Hello {SECRET}", "-o", "max_tokens", "4")
    return home


@pytest.fixture
def asked(asked_once, tmp_path):
    """A copy of it."""
    return asked_once.copied_to(tmp_path / "home")


def cache_of(home):
    return home.folder / "mlx" / "cache"


def lines_of(told):
    """The lines that were told, by what was looked at."""
    return {(line["part"], line["what"]): line for line in told["lines"]}


def quick(home, status=0):
    """The lines of a run without a model."""
    return lines_of(home.told("doctor", "-m", NOBODY, status=status))


def test_a_healthy_home_has_a_line_for_each_check(asked):
    """As users run it, in a process: JSON, status 0, nothing of theirs in it, nothing changed."""
    before = sorted(asked.folder.rglob("*"))
    out, error = asked.llm("mlx-cached", "doctor", "--json")
    told = json.loads(out)
    lines = lines_of(told)
    assert list(lines) == EVERY_LINE
    assert told["wrong"] == 0
    notes = [line for line in told["lines"] if line["health"] == "worth knowing"]
    assert told["worth_knowing"] == len(notes)
    assert told["seconds"] > 0
    assert {line["health"] for line in told["lines"]} <= {"ok", "worth knowing"}
    assert lines["disk", "index"]["figures"]["spans"] > 0
    assert lines["disk", "index"]["figures"]["contents"]
    warm = lines["model", "warm beside cold"]["figures"]
    assert warm["same_chunks"]["same_bits"]
    assert lines["model", "restored beside memory"]["figures"]["same_rows"]
    for theirs in (str(asked.folder.parent), str(Path.home()), SECRET, "tiny-llama"):
        assert theirs not in out + error
    assert "$LLM_MLX_CACHED_HOME/cache" in out
    assert sorted(asked.folder.rglob("*")) == before


def test_the_table_in_a_pipe_is_a_row_a_line(asked):
    out, _ = asked.ours("doctor", "-m", NOBODY)
    *rows, last = out.splitlines()
    cells = [row.split("\t") for row in rows]
    assert {len(row) for row in cells} == {5}
    assert [tuple(row[:2]) for row in cells] == EVERY_LINE[:12]
    assert last.startswith("12 lines in ")
    # No model, and hosts are switched off; a busy machine's disk may be slow too.
    assert re.search(r" wrong, [23] worth knowing$", last)


@pytest.mark.parametrize("mode", [0o755, 0o770])
def test_p7_a_folder_that_is_open_to_others_is_wrong_and_stays_as_it_is(asked, mode):
    cache_of(asked).chmod(mode)
    lines = quick(asked, status=1)
    line = lines["folders", "folder of cache"]
    assert line["health"] == "wrong"
    assert line["todo"] == "chmod 700 $LLM_MLX_CACHED_HOME/cache"
    assert lines["disk", "index"]["found"] == "left out until the folders are right"
    assert cache_of(asked).stat().st_mode & 0o777 == mode


def test_p7_a_file_that_others_can_read_is_wrong(asked):
    file = next(cache_of(asked).glob("spans/*.safetensors"))
    assert quick(asked)["folders", "files of the cache"]["figures"]["open"] == 0
    file.chmod(0o640)
    line = quick(asked, status=1)["folders", "files of the cache"]
    assert line["figures"]["open"] == 1
    assert line["todo"].startswith("chmod -R go= $LLM_MLX_CACHED_HOME/cache")


def test_backups_that_may_have_the_cache_are_told(asked):
    assert quick(asked)["folders", "backups"]["health"] == "ok"
    (cache_of(asked) / "CACHEDIR.TAG").unlink()
    line = quick(asked)["folders", "backups"]
    assert line["health"] == "worth knowing"
    assert line["figures"]["tag"] is False


def test_a_folder_that_is_gone_or_somebody_elses_is_wrong(tmp_path, monkeypatch):
    look = doctor_places.folder_of_ours
    assert look("cache", tmp_path, 0o077).health is Health.OK
    assert look("cache", tmp_path / "gone", 0o077).health is Health.WRONG
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    line = look("cache", tmp_path, 0o077)
    assert line.health is Health.WRONG
    assert f"belongs to user {uid}" in line.found


def test_settings_that_cannot_be_read_are_wrong(asked):
    (asked.folder / "mlx" / "data" / "settings.json").write_text("{")
    lines = quick(asked, status=1)
    assert lines["folders", "settings"]["health"] == "wrong"
    assert str(asked.folder) not in lines["folders", "settings"]["found"]


def test_an_index_that_is_damaged_is_wrong(asked):
    (cache_of(asked) / "index.sqlite").write_bytes(b"damaged" * 1000)
    line = quick(asked, status=1)["disk", "index"]
    assert line["health"] == "wrong"
    assert line["todo"] == "llm mlx-cached check --fix"
    assert "made anew" in line["found"]


def test_damaged_spans_are_found_as_long_as_there_are_not_too_many_to_read(asked, monkeypatch):
    file = next(cache_of(asked).glob("spans/*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-40] ^= 1
    file.write_bytes(content)
    assert quick(asked, status=1)["disk", "index"]["figures"]["wrong"] == 1
    monkeypatch.setattr(doctor_places, "_MOST_READ", 1)
    line = quick(asked, status=0)["disk", "index"]
    assert (line["figures"]["wrong"], line["figures"]["contents"]) == (0, False)
    file.unlink()  # what is missing needs no reading
    assert quick(asked, status=1)["disk", "index"]["figures"]["wrong"] >= 1


@pytest.mark.parametrize(
    ("space", "kind", "limit", "words"),
    [
        ((50 << 30, 100 << 30), "ext4", None, ""),
        ((50 << 30, 100 << 30), "nfs4", None, "other machines may see it"),
        ((1 << 30, 100 << 30), "apfs", None, "the cache keeps little"),
        ((50 << 30, 100 << 30), "apfs", 0, "nothing is kept on the disk"),
    ],
)
def test_room_and_file_system(space, kind, limit, words, tmp_path, monkeypatch):
    monkeypatch.setattr(files.Files, "space", lambda self, folder: space)
    monkeypatch.setattr(files.Files, "file_system", lambda self, folder: kind)
    line = doctor_places.room(DiskStore(tmp_path, limit))
    assert (line.health is Health.NOTE) == bool(words)
    assert words in line.todo
    assert line.figures["free"] == space[0]


def test_a_disk_is_read_from_a_file_that_is_removed(tmp_path, monkeypatch):
    line = doctor_disk.read_speed(tmp_path)
    assert line.figures["bytes"] >= 1 << 20
    assert line.figures["seconds"] > 0
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(doctor_disk, "_read", lambda path: 60.0)
    assert doctor_disk.read_speed(tmp_path).health is Health.NOTE
    assert doctor_disk.read_speed(tmp_path / "gone").health is Health.WRONG


def test_a_machine_that_can_not_run_mlx_well_is_told(monkeypatch):
    found = {"processor": "Apple M5", "cores": 10, "device": "CPU", "blas": None, "system": ""}
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("26.1", ("", "", ""), "arm64"))
    for machine, health in (("arm64", Health.OK), ("x86_64", Health.WRONG)):
        monkeypatch.setattr(platform, "machine", lambda machine=machine: machine)
        line = doctor_machine.processor(found)
        assert line.health is health
        assert f"macOS 26.1 {machine}" in line.found
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    assert doctor_machine.processor(found).health is Health.NOTE
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    (line,) = doctor_machine.machine_diagnoses()
    assert line.health is Health.WRONG


def test_memory_that_is_short_is_told(monkeypatch):
    assert doctor_machine.memory().figures["machine"] > 0
    monkeypatch.setattr("llm_mlx_promptcache.host.pressure.under_pressure", lambda: True)
    assert doctor_machine.memory().health is Health.NOTE


def test_a_model_that_is_unknown_is_one_line(asked):
    lines = lines_of(asked.told("doctor", "-m", "no model", status=1))
    assert lines["model", "model"]["health"] == "wrong"


@pytest.mark.parametrize(("size", "status"), [(6 << 30, 1), (1 << 20, 0)])
def test_a_model_that_this_mac_does_not_hold_is_left_out(asked, size, status, play, monkeypatch):
    monkeypatch.setattr("llm_mlx_promptcache.models.memory.weights_of", lambda folder: size)
    monkeypatch.setattr(
        "llm_mlx_promptcache.commands.doctor_model._measured", lambda loaded, folder: ()
    )
    play(8)
    line = lines_of(asked.told("doctor", status=status))["model", "model"]
    assert line["found"].startswith("too large: " if status else "llama, 2 layers")


@pytest.mark.parametrize(
    "spelled", ["private project", "./private project", "{cwd}/private project/"]
)
def test_p7_a_model_s_folder_has_no_name_however_it_is_written(
    asked, tmp_path, monkeypatch, spelled
):
    folder = tmp_path / "private project"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    monkeypatch.chdir(tmp_path)
    out, error = asked.ours("doctor", "-m", spelled.format(cwd=tmp_path), status=1)
    assert "the model in the model's folder can't be used" in out
    assert "private" not in out + error
    assert tmp_path.name not in out + error


EQUAL = Apart(0.0, same_bits=True, same_tokens=True)
NEAR = Apart(1e-5, same_bits=False, same_tokens=True)
TURNED = Apart(1e-5, same_bits=False, same_tokens=False)
OFF = Apart(0.01, same_bits=False, same_tokens=False)
FAR = Apart(1.0, same_bits=False, same_tokens=False)
INFINITE = Apart(float("inf"), same_bits=False, same_tokens=False)


@pytest.mark.parametrize(
    ("measured", "healths"),
    [
        (Speeds("bfloat16", 512, 1000.0, 50.0, finite=True), ["ok"]),
        (Speeds("bfloat16", 512, 1000.0, 50.0, finite=False), ["wrong"]),
        (WarmBesideCold(512, 384, EQUAL, None, NEAR, NEAR, 1e-4, 0.1), ["ok", "ok"]),
        (WarmBesideCold(512, 384, EQUAL, None, TURNED, NEAR, 1e-4, 0.1), ["ok", "worth knowing"]),
        (WarmBesideCold(512, 384, EQUAL, None, NEAR, TURNED, 1e-4, 0.1), ["ok", "worth knowing"]),
        (WarmBesideCold(512, 384, EQUAL, None, OFF, NEAR, 1e-4, 0.1), ["ok", "worth knowing"]),
        (WarmBesideCold(512, 384, EQUAL, None, FAR, NEAR, 1e-4, 0.1), ["ok", "wrong"]),
        (WarmBesideCold(512, 384, EQUAL, None, NEAR, FAR, 1e-4, 0.1), ["ok", "wrong"]),
        (WarmBesideCold(512, 384, EQUAL, None, INFINITE, NEAR, 1e-4, 0.1), ["ok", "wrong"]),
        (WarmBesideCold(512, 384, FAR, EQUAL, FAR, NEAR, 1e-4, 0.1), ["wrong", "worth knowing"]),
        (WarmBesideCold(512, 384, NEAR, EQUAL, NEAR, NEAR, 1e-4, 0.1), ["wrong", "ok"]),
        (WarmBesideCold(512, 384, NEAR, NEAR, NEAR, NEAR, 1e-4, 0.1), ["worth knowing", "ok"]),
        (WarmBesideCold(512, 384, FAR, NEAR, NEAR, NEAR, 1e-4, 0.1), ["wrong", "ok"]),
        (
            WarmBesideCold(512, 384, INFINITE, NEAR, INFINITE, NEAR, 1e-4, 0.1),
            ["wrong", "worth knowing"],
        ),
        (RestoreBesideMemory(384, 9000, 0.01, 0.5, same_rows=True, apart=EQUAL), ["ok"]),
        (RestoreBesideMemory(384, 9000, 0.01, 0.5, same_rows=True, apart=NEAR), ["worth knowing"]),
        (RestoreBesideMemory(384, 9000, 0.01, 0.5, same_rows=False, apart=EQUAL), ["wrong"]),
        (BatchBesideAlone(3, NEAR, 1e-4), ["ok"]),
        (BatchBesideAlone(3, TURNED, 1e-4), ["worth knowing"]),
        (BatchBesideAlone(3, FAR, 1e-4), ["wrong"]),
        (BatchBesideAlone(0, EQUAL, 1e-4, "its mask is another"), ["worth knowing"]),
        (NotFound("warm beside cold", 0, 384, "it is gone"), ["wrong"]),
        (NotKept("layers of class X can't be kept"), ["worth knowing"]),
        (NotInTime("together beside alone"), ["worth knowing"]),
    ],
)
def test_what_a_measurement_means(measured, healths):
    lines: list[Diagnosis] = list(diagnoses(measured))
    assert [line.health.value for line in lines] == healths
    for line in lines:
        assert line.todo or line.health is Health.OK
        json.dumps(line.figures, allow_nan=False)


def test_whatever_a_model_raises_is_a_line_of_the_table(monkeypatch, tmp_path):
    def raising(loaded, seconds):
        raise IndexError("no such layer")

    monkeypatch.setattr(doctor_model, "folder_here", lambda reference: None)
    monkeypatch.setattr(doctor_model, "_loaded", lambda reference: None)
    monkeypatch.setattr(doctor_model, "_described", raising)
    (line,) = doctor_model.model_diagnoses("default", tmp_path, 0)
    assert line.health is Health.WRONG
    assert "no such layer" in line.found
