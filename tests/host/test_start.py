"""A start: one host for however many ask, nothing inherited, and whatever goes wrong is bounded."""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest
from filelock import FileLock

from llm_mlx_promptcache import config
from llm_mlx_promptcache.host import hung, start
from llm_mlx_promptcache.host.frames import Channel, encode
from llm_mlx_promptcache.host.place import HostUnavailable, host_place
from llm_mlx_promptcache.host.start import HostRefused, HostSilent, Waits, connect, find

STAND_IN = Path(__file__).with_name("stand_in_host.py")
SECRET = "hf_thisIsMyAccessToken"
# A client in a process of its own, which tells who answered it.
CLIENT = """
import sys
from llm_mlx_promptcache.host.place import host_place
from llm_mlx_promptcache.host.start import connect
channel = connect(host_place(), command=sys.argv[1:])
print(channel.welcome["pid"])
channel.close()
"""


class Home:
    """A place of its own, and whom it has seen started."""

    def __init__(self, place):
        self.place = place

    def connect(self, *kinds, waits=None):
        return connect(self.place, command=command(*kinds), waits=waits)

    def started(self):
        path = self.place.folder / "started"
        return [int(pid) for pid in path.read_text().split()] if path.exists() else []

    def ask(self, *kinds):
        with closing(self.connect(*kinds)) as channel:
            channel.send({"ask": "itself"}, 60)
            return channel.receive(60)["result"]


def command(*kinds):
    return [sys.executable, "-P", str(STAND_IN), *(kinds or ("current",))]


def reapers():
    return [t for t in threading.enumerate() if t.name == "mlx-cached-host"]


def ended(place):
    """Wait until the host of a place has ended, by the lock that it holds as long as it lives."""
    with FileLock(place.life_lock).acquire(timeout=60):
        pass


@pytest.fixture
def home(monkeypatch):
    """A home with a short path; whatever was started in it ends with the test."""
    with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as folder:
        monkeypatch.setenv(config.HOME_VARIABLE, folder)
        monkeypatch.setenv(config.KEEP_VARIABLE, "5m")
        home = Home(host_place())
        yield home
        for pid in home.started():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
                os.kill(pid, signal.SIGCONT)
        ended(home.place)
        for thread in reapers():
            thread.join(60)
        # Nobody's child is left behind, also none that ended.
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)


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
        connect(home.place, command=[str(tmp_path / "gone")])


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


class Seen:
    """The waits that connections were given, most of them bound by what is left of them."""

    def __init__(self, monkeypatch):
        self.waits = []
        real = start.connected

        def connected(path, until):
            self.waits.append(until - time.monotonic())
            return real(path, until)

        monkeypatch.setattr(start, "connected", connected)


def test_a_host_that_is_stopped_costs_one_wait_and_is_remembered(home, monkeypatch):
    home.connect().close()
    (pid,) = home.started()
    os.kill(pid, signal.SIGSTOP)
    seen = Seen(monkeypatch)
    waits = Waits(hello=1.0, hung=0.05)
    for _ in range(3):
        with pytest.raises(HostSilent, match=rf"\(process {pid}\) does not answer") as told:
            home.connect(waits=waits)
        assert told.value.pid == pid
    with pytest.raises(HostSilent):
        find(home.place, waits=waits)
    first, *later = seen.waits
    assert first > 0.05 >= max(later)
    assert len(later) == 3
    os.kill(pid, signal.SIGCONT)
    channel = None
    while channel is None:
        with suppress(HostSilent):
            channel = home.connect(waits=waits)
    channel.close()
    assert not home.place.hung.exists()
    assert home.started() == [pid]


def test_a_host_that_hung_says_nothing_of_the_next(home):
    with closing(home.connect()) as channel:
        hung.remember(home.place, channel.host)
        assert hung.is_hung(home.place, channel.host)
        before = channel.host
    os.kill(home.started()[0], signal.SIGKILL)
    ended(home.place)
    with closing(home.connect()) as channel:
        assert channel.host != before
        assert hung.is_hung(home.place, before)  # what it said of that one stands


@pytest.mark.parametrize("mark", [b"", b"\xff\xfe", b"1 2", b"x" * 1000])
def test_any_mark_of_a_hung_host_can_be_read(home, mark):
    home.place.hung.write_bytes(mark)
    home.connect().close()
    home.place.hung.unlink()
    home.place.hung.mkdir()
    home.connect().close()


def test_an_idle_host_of_another_build_is_replaced(home):
    with pytest.raises(HostRefused, match=r"it runs mlx 0\.0\.1, and not "):
        home.connect("old")
    with closing(home.connect("old", "current")) as channel:
        assert [channel.welcome["pid"]] == home.started()[1:]


def test_many_that_replace_a_host_start_one(home):
    with pytest.raises(HostRefused):
        home.connect("old")

    def pid(_):
        with closing(home.connect("old", "current")) as channel:
            return channel.welcome["pid"]

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(pid, range(8))) == set(home.started()[1:])
    assert len(home.started()) == 2


def test_a_busy_host_of_another_build_is_passed_by(home):
    told = r"^the resident host does not take this process: it runs mlx 0\.0\.1, and not "
    for _ in range(2):
        with pytest.raises(HostRefused, match=told) as refused:
            home.connect("busy")
    assert refused.value.busy == 1
    assert len(home.started()) == 1


def test_a_host_that_was_idle_and_is_busy_when_it_is_to_end_goes_on(home):
    with pytest.raises(HostRefused, match=r"0\.0\.1"):
        home.connect("busy just now")
    for _ in range(2):
        with pytest.raises(HostRefused, match=r"0\.0\.1"):
            home.connect()
    assert len(home.started()) == 1


def test_a_host_that_is_stopping_is_waited_for(home):
    with pytest.raises(HostRefused, match="stopping"):
        home.connect("stopping")
    with closing(home.connect("stopping", "current")) as channel:
        assert [channel.welcome["pid"]] == home.started()[1:]


def test_an_old_host_that_does_not_end_is_waited_for_so_long_and_no_longer(home):
    with (
        FileLock(home.place.life_lock),
        pytest.raises(HostUnavailable, match="the host before has not ended"),
    ):
        home.connect(waits=Waits(stop=0.05))
    with pytest.raises(HostUnavailable, match="a host took too long to start"):
        home.connect()
    assert home.started() == []


def test_a_host_that_lives_and_could_not_be_reached_is_asked_again(home, monkeypatch):
    """Its line of connections was full, say, which macOS tells as it tells that none listens."""
    waits_for_its_end = threading.Event()
    real = start._alone

    def alone(path, *words):
        if path == home.place.life_lock:
            waits_for_its_end.set()
        return real(path, *words)

    monkeypatch.setattr(start, "_alone", alone)
    with FileLock(home.place.life_lock), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(home.connect, waits=Waits(stop=60))
        waits_for_its_end.wait(60)
        with (
            Listening(home.place, lambda sock: sock.sendall(encode({"welcome": {"pid": 1}}))),
            closing(asked.result()) as channel,
        ):
            assert channel.welcome == {"pid": 1}
    assert home.started() == []


def test_any_host_can_be_asked_after_whatever_its_build(home):
    with pytest.raises(HostRefused):
        home.connect("busy")
    with closing(find(home.place)) as channel:
        assert channel.welcome["build"]["mlx"] == "0.0.1"
        assert channel.welcome["busy"] == 1


def test_a_host_of_another_protocol_is_told(home):
    with pytest.raises(HostRefused, match="speaks protocol 2, and not 1"):
        home.connect("another protocol")
    with pytest.raises(HostRefused, match="speaks protocol 2, and not 1"):
        find(home.place)


def test_somebody_elses_host_is_refused_and_told_nothing(home, monkeypatch):
    heard = queue.SimpleQueue()
    with Listening(home.place, lambda sock: heard.put(sock.recv(100))):
        monkeypatch.setattr(start, "peer_uid", lambda sock: 12345)
        with pytest.raises(HostUnavailable, match=r"belongs to user 12345; remove that$"):
            home.connect()
        assert heard.get(timeout=60) == b""
    assert home.started() == []


def test_a_folder_that_was_opened_to_others_is_refused(home):
    home.place.folder.chmod(0o777)
    for ask in (home.connect, lambda: find(home.place)):
        with pytest.raises(HostUnavailable, match="open to others"):
            ask()
    home.place.folder.chmod(0o700)
    assert home.started() == []


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        (1 << 30).to_bytes(4, "big"),
        b"\0\0\0\2[]",
        (90_000).to_bytes(4, "big") + b"[" * 90_000,
    ],
)
def test_what_answers_with_garbage_is_no_host_of_ours(home, said):
    with Listening(home.place, lambda sock: sock.sendall(said)):
        with pytest.raises(HostUnavailable, match=r"is no host of ours$"):
            find(home.place)
        with pytest.raises(HostUnavailable, match=r"is no host of ours$"):
            home.connect()
    assert home.started() == []


@pytest.mark.parametrize("data", [{}, {"welcome": 1}, {"refused": 5, "busy": "x", "stopping": 1}])
def test_an_answer_without_sense_is_a_refusal_by_one_that_may_be_busy(home, data):
    with (
        Listening(home.place, lambda sock: sock.sendall(encode(data))),
        pytest.raises(HostRefused) as refused,
    ):
        home.connect()
    assert (refused.value.busy, refused.value.stopping) == (1, False)


@pytest.mark.parametrize("said", [b"", b"\0\0", encode({"welcome": {}})[:-1]])
def test_an_answer_that_breaks_off_is_of_one_that_ended(home, said):
    with Listening(home.place, lambda sock: sock.sendall(said)):
        assert find(home.place) is None


class Listening:
    """Somebody who listens at the host's socket and does one thing for each who comes."""

    def __init__(self, place, action):
        self.place, self.action = place, action

    def __enter__(self):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.place.socket))
        self.listener.listen(8)
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        with suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                with sock, suppress(ConnectionError):
                    self.action(sock)
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(1000):
                        pass

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(60)
        self.place.socket.unlink()


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
