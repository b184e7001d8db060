"""`llm mlx-cached doctor` beside a real host, which it neither starts nor ends."""

import signal

import pytest

from llm_mlx_promptcache.commands import doctor_host
from llm_mlx_promptcache.commands.doctor_diagnosis import Health
from llm_mlx_promptcache.host.place import place_in
from llm_mlx_promptcache.host.start import HostRefused


def host_lines(hosted, status=0):
    """The lines of `doctor` about the host, without a model, by what each is about."""
    told = hosted.told("doctor", "-m", "nobody/nothing", status=status)
    return {line["what"]: line for line in told["lines"] if line["part"] == "host"}


def test_doctor_asks_a_host_and_leaves_it_as_it_is(hosted, models):
    hosted.asked(models[0])
    before = hosted.told("ps")
    lines = host_lines(hosted)
    assert list(lines) == ["folder", "answers", "fits"]
    assert {line["health"] for line in lines.values()} == {"ok"}
    assert lines["answers"]["figures"]["models"] == 1
    after = hosted.told("ps")
    assert (after["pid"], after["models"]) == (before["pid"], before["models"])
    hosted.ours("settings", "--memory", "2GB")
    line = host_lines(hosted)["fits"]
    assert line["health"] == "worth knowing"
    assert "its settings are others (memory)" in line["found"]


@pytest.mark.parametrize(("busy", "health"), [(1, Health.NOTE), (0, Health.WRONG)])
def test_a_host_that_refuses_is_wrong_unless_it_is_busy(busy, health, tmp_path, monkeypatch):
    def refused(ask, *, seconds):
        raise HostRefused("it has 64 connections", busy=busy, stopping=False)

    monkeypatch.setattr(doctor_host, "existing_place", lambda: place_in(tmp_path))
    monkeypatch.setattr(doctor_host, "asked", refused)
    _, line = doctor_host.host_seen().lines
    assert (line.what, line.health) == ("answers", health)


def test_a_time_to_stay_that_cannot_be_read_is_wrong(bare_home, monkeypatch):
    monkeypatch.setenv("LLM_MLX_CACHED_KEEP", "soon")
    line = host_lines(bare_home, status=1)["runs"]
    assert line["health"] == "wrong"
    assert "LLM_MLX_CACHED_KEEP is 'soon'" in line["found"]


def test_doctor_names_a_host_that_hangs(hosted, models, impatient):
    hosted.host.send_signal(signal.SIGSTOP)
    line = host_lines(hosted, status=1)["answers"]
    hosted.host.send_signal(signal.SIGCONT)
    assert line["health"] == "wrong"
    assert line["todo"] == f"kill {hosted.host.pid}"


def test_doctor_names_a_host_s_folder_that_is_open(hosted):
    hosted.host.place.folder.chmod(0o755)
    line = host_lines(hosted, status=1)["folder"]
    hosted.host.place.folder.chmod(0o700)
    assert "is open to others (mode 755)" in line["found"]
