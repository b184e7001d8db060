"""The end of `llm mlx-cached doctor`: whatever ends it, what it made is gone."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
from itertools import count

import forks
import pytest

from llm_mlx_promptcache.commands import doctor, doctor_folder
from llm_mlx_promptcache.commands.doctor_diagnosis import Diagnosis
from llm_mlx_promptcache.commands.ending import EndedBySignal, Ending


def folders_of_doctor(home):
    return [path.name for path in (home.folder / "mlx").iterdir() if "doctor" in path.name]


@pytest.fixture
def measuring(quick_home):
    """A `doctor` that looks at its model: its folder is there by then."""
    process = subprocess.Popen(
        [forks.llm(), "mlx-cached", "doctor"],
        env=quick_home.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = [process.stderr.readline() for _ in range(2)]
    assert "loading" in said[1]
    assert len(folders_of_doctor(quick_home)) == 1
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_one_line_and_leaves_no_folder(quick_home, measuring, number):
    measuring.send_signal(number)
    out, error = measuring.communicate()
    assert (out, measuring.returncode) == ("", 128 + number)
    assert error.splitlines()[-1] == "doctor: stopped; what it made is removed"
    assert "Traceback" not in error
    assert folders_of_doctor(quick_home) == []


def test_who_reads_no_more_leaves_no_folder(quick_home, measuring):
    """As `doctor 2>&1 | head -1` closes both: what it says next breaks."""
    measuring.stdout.close()
    measuring.stderr.close()
    measuring.send_signal(signal.SIGTERM)
    assert measuring.wait() == 1  # click's, for a pipe that nobody reads
    assert folders_of_doctor(quick_home) == []


def test_a_pipe_that_breaks_before_the_model_leaves_no_folder(quick_home, monkeypatch):
    def broken(*_):
        assert len(folders_of_doctor(quick_home)) == 1
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(doctor, "model_diagnoses", broken)
    quick_home.ours("doctor", status=1)
    assert folders_of_doctor(quick_home) == []


def test_what_a_killed_doctor_left_is_removed_a_day_later(tmp_path, monkeypatch):
    place = tmp_path
    monkeypatch.setattr(doctor_folder, "cache_folder", lambda: place / "cache")
    old, new, other = (
        place / f"llm-mlx-promptcache-doctor-{name}" for name in ("0" * 16, "1" * 16, "of a user's")
    )
    for folder in (old, new, other):
        folder.mkdir()
        (folder / "reads").write_bytes(b"1")
    for folder in (old, other):
        os.utime(folder, (0, 0))
    own = doctor_folder.OwnFolder()
    made = own.make()
    assert made.parent == place
    assert made.stat().st_mode & 0o777 == 0o700
    assert sorted(place.glob("*doctor*")) == sorted([new, other, made])
    own.remove()
    assert sorted(place.glob("*doctor*")) == sorted([new, other])


def test_a_place_that_is_nowhere_has_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_folder, "cache_folder", lambda: tmp_path / "gone" / "cache")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    own = doctor_folder.OwnFolder()
    with pytest.raises(doctor_folder.NoFolder):
        own.make()
    own.remove()


def work(done, number, *, waiting):
    """Work and remove something, and write down both; a signal comes before that or meanwhile."""
    with Ending() as ending:
        try:
            try:
                if not waiting:
                    os.kill(os.getpid(), number)
                done.append("worked")
            finally:
                ending.hold()
        finally:
            os.kill(os.getpid(), number if waiting else signal.SIGTERM)
            done.append("removed")
        done.append("gone on")


@pytest.mark.parametrize("waiting", [False, True], ids=["at work", "while it removes"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_ends_a_command_once_it_has_removed_what_it_made(number, waiting):
    outside = signal.signal(number, signal.default_int_handler)  # nohup has SIGHUP ignored
    usual, done = signal.getsignal(number), []
    try:
        with pytest.raises(EndedBySignal) as ended:
            work(done, number, waiting=waiting)
        heard = signal.getsignal(number)
    finally:
        signal.signal(number, outside)
    assert done == (["worked", "removed", "gone on"] if waiting else ["removed"])
    assert ended.value.status == 128 + number
    assert heard is usual


class Loses:
    """An object whose end hears a signal: what is raised there is lost."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)


def ended(work):
    """The status with which a signal ends some work, which is told its `Ending`; 0 for none."""
    try:
        with Ending() as ending:
            work(ending)
    except EndedBySignal as error:
        return error.status
    return 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_is_lost_is_known_at_the_next_look_and_at_the_end():
    def work(ending):
        Loses()
        with pytest.raises(EndedBySignal):
            ending.check()

    assert ended(work) == 128 + signal.SIGTERM


def signalled(at, files):
    """Run `doctor` with a signal at the line of these files that comes `at`: status and lines."""
    seen = count()

    def trace(frame, event, _):
        if frame.f_code.co_filename not in files:
            return None
        if event == "line" and next(seen) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return trace

    def work(ending):
        sys.settrace(trace)
        doctor._lines("nobody/nothing", ending)

    before = sys.gettrace()
    try:
        return ended(work), next(seen)
    finally:
        sys.settrace(before)


def test_a_signal_at_any_line_leaves_no_folder(quick_home, monkeypatch):
    """Whatever is under way: making the folder, writing into it, removing it."""
    line = Diagnosis("model", "model", "looked at")

    def looked(reference, folder, held):
        try:
            (folder / "spans").mkdir(parents=True)
            yield line
        finally:
            (folder / "late").mkdir(parents=True)  # as what is written behind

    for name in ("machine_diagnoses", "folder_diagnoses", "disk_diagnoses"):
        monkeypatch.setattr(doctor, name, lambda *_: iter([line]))
    monkeypatch.setattr(doctor, "read_speed", lambda folder: line)
    monkeypatch.setattr(doctor, "model_diagnoses", looked)
    files = {module.__file__ for module in (doctor, doctor_folder)}
    status, total = signalled(-1, files)
    assert (status, total > 100) == (0, True)
    for at in range(total):
        assert signalled(at, files)[0] == 128 + signal.SIGTERM
        assert folders_of_doctor(quick_home) == [], at


def test_a_signal_that_is_ignored_stays_so():
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Ending():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, usual)
