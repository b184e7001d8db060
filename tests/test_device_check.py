"""`benchmarks/device.py`, which few machines run: whole on this CPU, and each part seen to fail."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from llm_mlx_promptcache.cache.layers import kinds

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def device():
    """The script as a module."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        found = importlib.import_module("device")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    # As long as a tiny model allows.
    found.PREFIX, found.LAYERS, found.LENGTH = 300, 2, 2000
    return found


@pytest.fixture
def ran(device, tiny_llama, tmp_path, capsys):
    """`ran(parts)`: the exit status, and the lines of the table by part and what was looked at."""

    def run(*parts, model=""):
        target = tmp_path / "figures.json"
        model = model or str(tiny_llama(context=2048))
        status = device.main([*parts, "--model", model, "--json", str(target)])
        lines = json.loads(target.read_text())["lines"]
        shown = capsys.readouterr().out
        assert shown.count("\n| ") == len(lines) + 1
        assert f"\n{len(lines)} lines in " in shown
        return status, {(line["part"], line["what"]): line for line in lines}

    return run


def test_waits_and_memory(ran):
    status, lines = ran("waits", "memory")
    assert [what for part, what in lines if part == "waits"] == [
        "cold",
        "warm",
        "warm, with a disk",
        "after a restart",
    ]
    assert len([1 for part, _ in lines if part == "memory"]) == 3
    assert (status, [line for line in lines.values() if not line["held"]]) == (0, [])


def test_rows_of_kinds_and_dtypes(ran, device, monkeypatch):
    monkeypatch.setattr(device, "KINDS", ("llama", "mamba2"))
    monkeypatch.setattr(device, "DTYPES", device.DTYPES[1:])
    status, lines = ran("rows")
    assert len(lines) == len(device.KINDS) * len(device.DTYPES) * 4
    assert {line["held"] for line in lines.values()} == {True}
    assert status == 0


def test_doctor_s_lines(ran):
    status, lines = ran("doctor")
    assert ("doctor", "model: warm beside cold") in lines
    assert lines["doctor", "its exit status"]["found"] == "0"
    assert status == 0


def test_what_does_not_hold_is_told(ran, device, monkeypatch):
    monkeypatch.setitem(device.waits_of.MOST_WAITS, "warm", 0)
    status, lines = ran("waits")
    assert status == 1
    wrong = [what for (_, what), line in lines.items() if not line["held"]]
    assert wrong == ["warm"]


def test_rows_that_come_back_otherwise_are_told(ran, device, monkeypatch):
    join = kinds.KVRows.join

    def joined(kind, views, count, headroom):
        layer = join(kind, views, count, headroom)
        layer.keys = layer.keys + 0.01
        return layer

    monkeypatch.setattr(kinds.KVRows, "join", joined)
    monkeypatch.setattr(device, "KINDS", ("llama",))
    monkeypatch.setattr(device, "DTYPES", device.DTYPES[:1])
    status, lines = ran("rows")
    assert status == 1
    assert not lines["rows", "llama, float32: warm beside cold"]["held"]


def test_a_doctor_that_finds_something_wrong_is_told(ran):
    status, lines = ran("doctor", model="no model")
    assert status == 1
    assert not lines["doctor", "model: model"]["held"]
    assert lines["doctor", "its exit status"]["found"] == "1"
