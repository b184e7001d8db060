"""`benchmarks/device.py`, which few machines run: whole on this CPU, and each part seen to fail."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from llm_mlx_promptcache.cache.layers import kinds
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.engine import self_test
from llm_mlx_promptcache.engine.batch_layers import BatchForm
from llm_mlx_promptcache.engine.batch_probe import Verdict

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
    assert len(lines) == len(device.KINDS) * len(device.DTYPES) * len(device.MEASURED)
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


def wrong_of(lines):
    return [what for (_, what), line in lines.items() if not line["held"]]


def test_a_cache_that_never_hits_is_told_though_it_waits_less(ran, device, monkeypatch):
    """As many waits as cold are fewer than warm ones may be."""
    monkeypatch.setattr(PromptCache, "insert_path", lambda *_, **__: None)
    status, lines = ran("waits")
    assert status == 1
    assert wrong_of(lines) == ["warm", "warm, with a disk", "after a restart"]


def test_waits_that_are_not_counted_are_told(ran, device, monkeypatch):
    monkeypatch.setattr(device.waits_of.Counted, "_count", lambda *_: None)
    assert len(wrong_of(ran("waits")[1])) == 4


def test_rows_that_are_not_kept_or_not_batched_are_told(ran, device, monkeypatch):
    monkeypatch.setattr(device, "KINDS", ("llama",))
    monkeypatch.setattr(device, "DTYPES", device.DTYPES[:1])
    monkeypatch.setattr(self_test, "_not_kept", lambda layers: "of no class that is kept")
    alone = Verdict(BatchForm.ALONE, "it has none")
    monkeypatch.setattr(self_test, "prove", lambda model: alone)
    status, lines = ran("rows")
    assert status == 1
    assert wrong_of(lines) == [f"llama, float32: {what}" for what in device.MEASURED[1:]]


def test_a_doctor_that_measures_nothing_is_told(ran, device):
    status, lines = ran("doctor", model="nobody/nothing")  # which is no error of a user's
    assert lines["doctor", "its exit status"]["held"]
    assert status == 1
    assert wrong_of(lines) == [f"model: {what}" for what in device.MEASURED]


def test_a_part_that_raises_is_a_line_and_the_others_follow(ran, device, monkeypatch):
    def raising(asked):
        raise RuntimeError("no such device")

    monkeypatch.setitem(device.PARTS, "memory", raising)
    status, lines = ran("memory", "waits")
    assert status == 1
    assert wrong_of(lines) == ["all of it"]
    assert "no such device" in lines["memory", "all of it"]["found"]


def test_a_doctor_that_finds_something_wrong_is_told(ran):
    status, lines = ran("doctor", model="no model")
    assert status == 1
    assert not lines["doctor", "model: model"]["held"]
    assert lines["doctor", "its exit status"]["found"] == "1"
