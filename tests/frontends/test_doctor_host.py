"""`llm mlx-cached doctor` beside a real host, which it neither starts nor ends."""

import signal


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
