"""A start: one host for however many ask, nothing inherited, and whatever goes wrong is bounded."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from filelock import FileLock
from homes import command, ended, reapers

from llm_mlx_promptcache.host import hung, start
from llm_mlx_promptcache.host.child import Program
from llm_mlx_promptcache.host.frames import Channel
from llm_mlx_promptcache.host.place import HostUnavailable
from llm_mlx_promptcache.host.start import Waits, connect, find

SECRET = "hf_thisIsMyAccessToken"
# A client in a process of its own, which tells who answered it.
CLIENT = """
import sys
from llm_mlx_promptcache.host.place import host_place
from llm_mlx_promptcache.host.child import Program
from llm_mlx_promptcache.host.start import connect
channel = connect(host_place(), program=Program(sys.argv[1:]))
print(channel.welcome["pid"])
channel.close()
"""


def test_where_there_is_none_one_is_started_and_found_from_then_on(home):
    assert find(home.place) is None
    with closing(home.connect()) as channel:
        pid = channel.welcome["pid"]
    for other in (home.connect(), find(home.place)):
        with closing(other):
            assert other.welcome["pid"] == pid
    assert home.started() == [pid]


@pytest.mark.parametrize("number", [2, 8])
def test_processes_that_start_at_once_start_one(home, number):
    line = [sys.executable, "-W", "error", "-c", CLIENT, *command()]
    clients = [
        subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(number)
    ]
    told = [client.communicate(timeout=120) for client in clients]
    assert told == [(f"{home.started()[0]}\n", "")] * number
    assert len(home.started()) == 1


def test_threads_that_start_at_once_start_one(home):
    barrier = threading.Barrier(8)

    def pid(_):
        barrier.wait()
        with closing(home.connect()) as channel:
            return channel.welcome["pid"]

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(pid, range(8))) == set(home.started())
    assert len(home.started()) == 1


@pytest.mark.parametrize("line", ["x=$({}); echo $x", "{} | cat", "{} 2>&1 | cat"])
def test_a_shell_that_waits_for_the_output_ends_with_the_answer(home, line):
    """The host lives on: had it any end of a pipe, `run` would wait for it until its time is up."""
    words = [sys.executable, "-c", CLIENT, *command()]
    asked = " ".join(f"'{word}'" for word in words)
    done = subprocess.run(
        ["sh", "-c", line.format(asked)], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr) == (f"{home.started()[0]}\n", "")
    os.kill(home.started()[0], 0)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no list of open files here")
def test_a_host_has_no_file_of_its_starter(home):
    """Not even one that was made to be inherited."""
    read, write = os.pipe()
    try:
        os.set_inheritable(write, True)
        os.set_blocking(read, False)
        files = home.ask()["files"]
        assert files == ["/dev/null", "/dev/null", str(home.place.log)]
        os.close(write)
        assert os.read(read, 1) == b""  # nobody else has the pipe's other end
    finally:
        os.close(read)


def test_a_host_is_a_process_of_its_own_without_secrets(home, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    told = home.ask()
    assert told["session"] == home.started()[0]
    assert told["cwd"] == "/"
    assert told["umask"] == 0o077
    assert told["environment"]["HF_TOKEN"] == SECRET
    assert "sk-secret" not in json.dumps(told)
    for path in home.place.folder.iterdir():
        if not path.is_socket():
            assert SECRET.encode() not in path.read_bytes(), path
            assert path.stat().st_mode & 0o077 == 0 or path.name == "started", path


def test_another_starter_is_waited_for_and_not_for_ever(home):
    with (
        FileLock(home.place.start_lock),
        pytest.raises(HostUnavailable, match=r"^another process has long been starting a host"),
    ):
        home.connect(waits=Waits(lock=0.05))
    assert home.started() == []


def test_a_socket_that_nobody_listens_at_is_no_host(home):
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(home.place.socket))
    assert find(home.place) is None
    home.connect().close()
    assert len(home.started()) == 1


def test_after_a_host_that_was_killed_another_is_started(home):
    home.connect().close()
    os.kill(home.started()[0], signal.SIGKILL)
    ended(home.place)
    assert find(home.place) is None
    with closing(home.connect()) as channel:
        assert [channel.welcome["pid"]] == home.started()[1:]


def test_a_host_that_ends_just_as_it_is_asked_is_followed_by_another(home):
    first = threading.Thread(target=subprocess.run, args=[command("leaves")])
    first.start()
    while not home.place.socket.exists():
        first.join(0.01)
    with closing(home.connect("leaves", "current")) as channel:
        assert [channel.welcome["pid"]] == home.started()[1:]
    first.join(60)


def test_a_host_that_fails_at_its_start_is_told_at_once_with_its_log(home):
    with pytest.raises(HostUnavailable, match=r"ended at its start \(status 1\); see .*host/log$"):
        home.connect("fails")
    assert "it can't begin" in home.place.log.read_text()


def test_a_host_that_can_not_be_run_is_told(home, tmp_path):
    with pytest.raises(HostUnavailable, match=r"^no host can be had \(.*gone: No such file"):
        connect(home.place, program=Program([str(tmp_path / "gone")]))


def test_a_host_that_never_listens_is_waited_for_so_long_and_ended(home, monkeypatch):
    children = []
    real = start.HostChild
    monkeypatch.setattr(start, "HostChild", lambda *a: children.append(real(*a)) or children[-1])
    with pytest.raises(HostUnavailable, match=r"was not there after 0.5 seconds; see"):
        home.connect("never listens", waits=Waits(start=0.5))
    for _ in range(3):  # it costs its wait once
        with pytest.raises(HostUnavailable, match=r"^a host took too long to start \d+ seconds"):
            home.connect()
    for thread in reapers():
        thread.join(60)
    assert reapers() == []
    assert [child.status for child in children] == [-signal.SIGTERM]


@pytest.mark.parametrize("ago", [61, -3600])
def test_a_start_that_took_too_long_is_tried_again(home, ago):
    """A minute later, or when the clock has been set back."""
    hung.remember_start(home.place)
    then = time.time() - ago
    os.utime(home.place.hung, (then, then))
    home.connect().close()
    assert len(home.started()) == 1


def test_the_log_is_appended_to_until_it_is_large(home):
    home.place.log.write_text("before\n")
    home.place.log.chmod(0o644)
    with pytest.raises(HostUnavailable):
        home.connect("fails")
    assert home.place.log.read_text().startswith("before\n")
    assert home.place.log.stat().st_mode & 0o777 == 0o600
    home.place.log.write_text("x" * 1_000_001)
    with pytest.raises(HostUnavailable):
        home.connect("fails")
    assert home.place.log.stat().st_size < 1000


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_log_that_is_no_file_is_told_and_never_waited_for(home, tmp_path, kind):
    if kind == "link":
        home.place.log.symlink_to(tmp_path / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(home.place.log)
    else:
        home.place.log.mkdir()
    with pytest.raises(HostUnavailable, match=r"^no host can be had \("):
        home.connect()
    assert not (tmp_path / "elsewhere").exists()
    assert home.started() == []


def test_a_client_leaves_its_host_behind_without_a_word(home):
    """No warning of a child that still runs, when the interpreter ends that started it."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", CLIENT, *command()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    os.kill(int(done.stdout), 0)


def test_a_channel_names_its_host(home):
    with closing(home.connect()) as channel:
        assert isinstance(channel, Channel)
        assert channel.host == hung.name_of(home.place) != ""
