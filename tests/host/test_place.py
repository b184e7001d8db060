"""The host's place: one folder that nobody else can put a socket into, or no host."""

import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from llm_mlx_promptcache import config
from llm_mlx_promptcache.cache.disk.files import Files
from llm_mlx_promptcache.host import place as places
from llm_mlx_promptcache.host.place import (
    MAX_PATH,
    HostUnavailable,
    connected,
    host_place,
    peer_pid,
    peer_uid,
    place_in,
    verify,
)

SOMEBODY = 65534


@pytest.fixture
def short():
    """A folder whose path is short, wherever pytest's own are."""
    with tempfile.TemporaryDirectory(prefix="p", dir="/tmp") as folder:
        yield Path(folder).resolve()


@pytest.fixture
def home(short, monkeypatch):
    monkeypatch.setenv(config.HOME_VARIABLE, str(short / "home"))
    return short / "home"


@pytest.fixture
def long_home(short, monkeypatch):
    """A home with a path of 200 bytes, and no folder for what is running."""
    folder = short / ("ä" * 60) / ("x" * 80)
    monkeypatch.setenv(config.HOME_VARIABLE, str(folder))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(short))
    return folder


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def bound(path):
    """A socket that listens at a path."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(str(path))
        sock.listen(1)
    except OSError:
        sock.close()
        raise
    return sock


def test_a_place_is_in_the_cache_and_its_owners_alone(home):
    place = host_place()
    assert place == place_in(home / "cache" / "host")
    assert mode(place.folder) == 0o700
    assert list(place.folder.iterdir()) == []
    assert host_place() == place


def test_the_folder_is_made_under_any_umask(home):
    before = os.umask(0)
    try:
        assert mode(host_place().folder) == 0o700
    finally:
        os.umask(before)


def test_a_path_too_long_for_a_socket_has_a_short_place(long_home, short):
    place = host_place()
    assert place.folder.parent == short
    assert mode(place.folder) == 0o700
    with bound(place.socket):
        pass
    assert host_place() == place


def test_a_home_has_one_place_by_whatever_path(home, short, monkeypatch):
    place = host_place()
    (short / "link").symlink_to(home)
    for path in (short / "link", home / ".." / "home", short / ("x" * 90) / ".." / "home"):
        monkeypatch.setenv(config.HOME_VARIABLE, str(path))
        (short / ("x" * 90)).mkdir(exist_ok=True)
        assert host_place() == place


def test_links_that_go_round_are_told(home):
    home.symlink_to(home)
    with pytest.raises(HostUnavailable, match="can't be made"):
        host_place()


def test_each_home_has_a_place_of_its_own(long_home, monkeypatch):
    first = host_place()
    monkeypatch.setenv(config.HOME_VARIABLE, str(long_home / "other"))
    assert host_place().folder != first.folder


def test_a_long_home_has_its_place_beside_what_runs(long_home, short, monkeypatch):
    runtime = short / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    assert host_place().folder.parent == runtime
    for other in ("relative", str(short / "gone"), ""):
        monkeypatch.setenv("XDG_RUNTIME_DIR", other)
        assert host_place().folder.parent == short


def test_a_long_folder_for_temporary_files_is_passed_by(long_home, short, monkeypatch):
    (short / ("t" * 90)).mkdir()
    monkeypatch.setenv("TMPDIR", str(short / ("t" * 90)))
    place = host_place()
    try:
        assert place.folder.parent == Path("/tmp")
    finally:
        place.folder.rmdir()


def test_a_home_on_another_machine_has_its_place_on_this_one(home, short, monkeypatch):
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(short))
    monkeypatch.setattr(Files, "file_system", lambda self, folder: "nfs4")
    assert host_place().folder.parent == short


@pytest.mark.parametrize("length", [MAX_PATH, MAX_PATH + 1])
def test_the_longest_path_is_what_the_system_takes(short, length):
    path = short / ("s" * (length - len(str(short)) - 1))
    assert len(os.fsencode(path)) == length
    if length > MAX_PATH:
        with pytest.raises(OSError, match="too long"):
            bound(path)
    else:
        with bound(path):
            pass


def test_a_home_that_can_not_be_made_is_told(home):
    home.write_text("a file")
    with pytest.raises(HostUnavailable, match=r"host can't be made \(.*home: File exists\)$"):
        host_place()


def test_a_link_is_refused(home, short):
    (short / "elsewhere").mkdir(mode=0o700)
    host_place().folder.rmdir()
    (home / "cache" / "host").symlink_to(short / "elsewhere")
    with pytest.raises(HostUnavailable, match=r"host is a link; remove it$"):
        host_place()


def test_a_file_is_refused(home):
    host_place().folder.rmdir()
    (home / "cache" / "host").write_text("")
    with pytest.raises(HostUnavailable, match=r"host (is not a folder; .*|can't be made .*)$"):
        host_place()


@pytest.mark.parametrize("bits", [0o777, 0o750, 0o701, 0o702])
def test_a_folder_open_to_others_is_refused(home, bits):
    host_place().folder.chmod(bits)
    with pytest.raises(HostUnavailable, match=rf"open to others \(mode {bits:o}\); chmod 700 it"):
        host_place()


def test_somebody_elses_folder_is_refused(home, monkeypatch):
    folder = host_place().folder
    if os.geteuid() == 0:
        os.chown(folder, SOMEBODY, -1)
        told = SOMEBODY
    else:
        told = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: SOMEBODY)
    with pytest.raises(HostUnavailable, match=rf"belongs to user {told}; remove it$"):
        verify(folder)


def test_a_folder_beside_which_all_may_write_is_refused_unless_it_is_sticky(home):
    folder = host_place().folder
    folder.parent.chmod(0o1777)
    verify(folder)
    folder.parent.chmod(0o777)
    with pytest.raises(HostUnavailable, match=r"others may rename what is in .*cache; chmod o-w"):
        verify(folder)


def test_a_short_place_that_somebody_was_quicker_to_make_is_refused(long_home, short):
    """As others can in /tmp, where they know the name."""
    folder = host_place().folder
    folder.chmod(0o777)
    with pytest.raises(HostUnavailable, match="open to others"):
        host_place()


def test_a_folder_that_is_gone_is_told(short):
    with pytest.raises(HostUnavailable, match=r"can't be read \(No such file"):
        verify(short / "gone")


def test_who_listens_and_who_connects_are_known(short):
    """In two processes, each of which is told of the other."""
    with bound(short / "s") as listener:
        told = (
            "import sys, time; from pathlib import Path;"
            "from llm_mlx_promptcache.host.place import connected, peer_pid, peer_uid;"
            "sock = connected(Path(sys.argv[1]), time.monotonic() + 60);"
            "print(peer_uid(sock), peer_pid(sock)); sock.recv(1)"
        )
        command = [sys.executable, "-c", told, short / "s"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
            sock, _ = listener.accept()
            with sock:
                assert (peer_uid(sock), peer_pid(sock)) == (os.geteuid(), client.pid)
                assert client.stdout.readline() == f"{os.geteuid()} {os.getpid()}\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_somebody_else_is_known_by_their_number(short):
    short.chmod(0o755)
    with bound(short / "s") as listener:
        (short / "s").chmod(0o666)
        told = (
            f"import os, socket; s = socket.socket(1); os.setuid({SOMEBODY});"
            f"s.connect({str(short / 's')!r}); s.recv(1)"
        )
        with subprocess.Popen([sys.executable, "-I", "-c", told]):
            sock, _ = listener.accept()
            with sock:
                assert peer_uid(sock) == SOMEBODY


def test_where_nobody_listens_there_is_no_socket(short):
    assert connected(short / "s", time.monotonic() + 60) is None
    bound(short / "s").close()
    assert (short / "s").is_socket()
    assert connected(short / "s", time.monotonic() + 60) is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse at once")
def test_a_full_line_of_connections_is_waited_for_and_then_told(short, monkeypatch):
    """A listener that takes nobody, like a stopped one; each try is followed by a pause."""
    now = [0.0]

    def pause(seconds):
        now[0] += 1.0

    with bound(short / "s"), socket.socket(socket.AF_UNIX) as one, socket.socket(1) as two:
        for sock in (one, two):
            sock.connect(str(short / "s"))
        monkeypatch.setattr(places, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=pause))
        with pytest.raises(TimeoutError, match="takes no connections"):
            connected(short / "s", 5.0)
        assert now == [5.0]
