"""Memory pressure as the system tells it."""

import ctypes
import sys

import pytest

from llm_mlx_promptcache.host import pressure

CALM = """some avg10=0.00 avg60=0.31 avg300=12.00 total=1234
full avg10=90.00 avg60=0.00 avg300=0.00 total=99
"""


@pytest.mark.parametrize(
    ("text", "percent"),
    [
        (CALM, 0.0),
        (CALM.replace("some avg10=0.00", "some avg10=20.50"), 20.5),
        ("", 0.0),
        ("some", 0.0),
        ("some avg60=50.00", 0.0),
        ("some avg10=much", 0.0),
        ("full avg10=99.00", 0.0),
    ],
)
def test_stalls_are_read_from_the_line_of_some(text, percent):
    assert pressure.stalled_in(text) == percent


@pytest.mark.parametrize(("percent", "short"), [("20.00", False), ("20.01", True)])
def test_a_fifth_of_the_time_stalled_is_pressure(tmp_path, monkeypatch, percent, short):
    stalls = tmp_path / "memory"
    stalls.write_text(CALM.replace("some avg10=0.00", f"some avg10={percent}"))
    monkeypatch.setattr(pressure, "_STALLS", stalls)
    monkeypatch.setattr(sys, "platform", "linux")
    assert pressure.under_pressure() is short


def test_a_system_that_does_not_tell_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(pressure, "_STALLS", tmp_path / "missing")
    monkeypatch.setattr(sys, "platform", "linux")
    assert not pressure.under_pressure()


@pytest.mark.parametrize(("level", "short"), [(1, False), (2, True), (4, True)])
def test_macos_tells_a_level(monkeypatch, level, short):
    asked = []

    class Library:
        @staticmethod
        def sysctlbyname(name, value, size, new, new_size):
            asked.append((name, size._obj.value, new, new_size.value))
            value._obj.value = level
            return 0

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    assert pressure.under_pressure() is short
    assert asked == [(b"kern.memorystatus_vm_pressure_level", 4, None, 0)]


def test_a_level_that_can_not_be_read_is_none(monkeypatch):
    class Library:
        @staticmethod
        def sysctlbyname(*_):
            return -1

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    assert not pressure.under_pressure()
