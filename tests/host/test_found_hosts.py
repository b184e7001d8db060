"""Hosts that a start finds: hanging, of other builds, or none: all waits are bounded."""

import os
import queue
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import pytest
from filelock import FileLock
from homes import ended
from worlds import watched

from llm_mlx_promptcache.host import hung, start
from llm_mlx_promptcache.host.frames import encode
from llm_mlx_promptcache.host.place import HostUnavailable
from llm_mlx_promptcache.host.start import HostRefused, HostSilent, Waits, find


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
    home.place.hung.rmdir()
    os.mkfifo(home.place.hung)
    with watched():
        home.connect().close()


def test_an_idle_host_of_another_build_is_replaced(home):
    with pytest.raises(HostRefused, match=r"it runs mlx 0\.0\.1, and not "):
        home.connect("old")
    with closing(home.connect("old", "current")) as channel:
        assert [channel.welcome["pid"]] == home.started()[1:]


@pytest.mark.parametrize("kind", ["old", "busy"])
def test_a_process_whose_package_was_replaced_ends_no_host_of_the_new_one(home, monkeypatch, kind):
    def replaced():
        raise HostUnavailable("packages were changed")

    with pytest.raises(HostRefused):
        home.connect(kind)
    monkeypatch.setattr(start, "check_build", replaced)
    with pytest.raises(HostUnavailable, match="packages were changed"):
        home.connect()
    with closing(find(home.place)) as channel:
        assert [channel.welcome["pid"]] == home.started()


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
        with pytest.raises(HostUnavailable, match=r"is not a host's$"):
            find(home.place)
        with pytest.raises(HostUnavailable, match=r"is not a host's$"):
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
    """A listener at the host's socket that does one thing for each client."""

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
