"""The host itself, started as a front end does: found, fitting, replaced, and leaving when told."""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import closing, suppress
from pathlib import Path

import pytest
from filelock import FileLock

from llm_mlx_promptcache import config
from llm_mlx_promptcache.host.place import host_place, peer_pid
from llm_mlx_promptcache.host.start import connect, find

CLIENT = """
from llm_mlx_promptcache.host.place import host_place
from llm_mlx_promptcache.host.start import connect
channel = connect(host_place())
print(channel.welcome["pid"])
channel.close()
"""


@pytest.fixture
def place(monkeypatch):
    """A place with a short path; the host that is in it at the end is ended."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:
        monkeypatch.setenv(config.HOME_VARIABLE, folder)
        monkeypatch.setenv(config.KEEP_VARIABLE, "5m")
        place = host_place()
        yield place
        with closing(find(place)) as channel:
            os.kill(channel.welcome["pid"], signal.SIGTERM)
        with FileLock(place.life_lock).acquire(timeout=60):
            assert not place.socket.exists()
        assert host_log(place) == ""


def host_log(place):
    return place.log.read_text()


def pid(place):
    with closing(connect(place)) as channel:
        return channel.welcome["pid"]


def open_files(process):
    """The names of the files that a process holds, but for those that it closes meanwhile."""
    found = set()
    for file in Path(f"/proc/{process}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(str(file.readlink()))
    return found


def test_one_is_started_and_fits_who_started_it(place, monkeypatch, tmp_path):
    """From wherever, and however the folders are written that both use."""
    (tmp_path / "hub").mkdir()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_TOKEN", "hf_thisIsMyAccessToken")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    home = os.environ[config.HOME_VARIABLE]
    monkeypatch.chdir(tmp_path)
    first = pid(place)
    for name, value in (("HF_HOME", "hub"), (config.HOME_VARIABLE, os.path.relpath(home))):
        monkeypatch.setenv(name, value)
        assert pid(host_place()) == first
    if Path("/proc/self/environ").exists():
        given = Path(f"/proc/{first}/environ").read_bytes()
        assert b"hf_thisIsMyAccessToken" in given
        assert b"sk-secret" not in given
    monkeypatch.setenv(config.HOME_VARIABLE, home)


def test_one_that_does_not_fit_is_replaced_by_one_that_does(place, monkeypatch):
    pids = [pid(place)]
    config.save_settings(config.Settings(memory="2GB"))
    pids.append(pid(place))
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    pids.append(pid(place))
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    pids.append(pid(place))
    assert len(set(pids)) == 4
    config.save_settings(config.Settings(memory="2GB", default_model="a/b", keep="1h"))
    assert pid(place) == pids[-1]


def test_after_one_that_was_killed_another_is_started(place):
    first = pid(place)
    os.kill(first, signal.SIGKILL)
    with FileLock(place.life_lock).acquire(timeout=60):
        pass
    assert find(place) is None
    assert pid(place) != first


def test_a_shell_ends_with_the_answer_and_the_host_lives_on(place):
    line = f"x=$('{sys.executable}' -c '{CLIENT}'); echo $x"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == (f"{pid(place)}\n", "")


def test_it_is_a_session_of_its_own_at_the_root_of_all_folders(place):
    with closing(connect(place)) as channel:
        host = channel.welcome["pid"]
        assert peer_pid(channel._sock) == host
    assert os.getsid(host) == host
    if Path("/proc/self/cwd").exists():
        assert Path(f"/proc/{host}/cwd").readlink() == Path("/")
        mine = {str(place.log), str(place.life_lock), "/dev/null"}
        assert {f for f in open_files(host) if f.startswith("/")} <= mine
