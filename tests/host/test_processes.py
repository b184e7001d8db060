"""Hosts in processes of their own: how they start, what they survive, and how they end."""

import contextlib
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hosts import LONG, PATIENT, descriptors, events, frames_of, generate

from llm_mlx_promptcache.host.frames import Channel, encode
from llm_mlx_promptcache.host.hello import bare_hello
from llm_mlx_promptcache.host.main import listening

SECRET = "the heron flies at midnight"


@pytest.fixture(scope="module")
def folder(tiny_llama):
    return tiny_llama()


@pytest.fixture
def host(start):
    """A host that listens."""
    made = start()
    made.connected().close()
    return made


def begun(host, ask):
    """A channel whose answer has begun, and its frames so far."""
    channel = host.welcomed()
    channel.send(ask, LONG)
    frames = []
    for frame in frames_of(channel):
        frames.append(frame)
        if frame.get("event", {}).get("is") == "TextDelta":
            return channel, frames
    raise AssertionError(frames)


def test_it_answers_and_says_what_it_is(host, folder):
    *_, last, end = host.ask(generate(folder))
    assert end == {"end": True}
    assert events([last])[0].usage.generated == 6
    told = host.ps()
    assert told["pid"] == host.process.pid
    assert [(one["model"], one["loaded"]) for one in told["models"]] == [(str(folder), True)]
    assert (told["busy"], told["keep"]) == (0, 3600)
    assert 3600 - told["left"] == pytest.approx(told["idle"])
    assert stat.S_IMODE(host.place.socket.stat().st_mode) == 0o600
    assert host.log() == ""


def test_nothing_heavy_is_imported_before_it_listens():
    """In a process of its own, up to the line that listens."""
    code = (
        "import sys, llm_mlx_promptcache.host.main as main\n"
        "def listen(place):\n"
        "    heavy = ('mlx', 'mlx_lm', 'transformers', 'huggingface_hub', 'numpy', 'asyncio')\n"
        "    raise SystemExit(' '.join(name for name in heavy if name in sys.modules) or 0)\n"
        "main.listening = listen\n"
        "main.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_idle_host_leaves_by_itself(host, folder):
    assert host.ask(generate(folder, keep=0.01))[-1] == {"end": True}
    assert host.ended() == 0
    assert not host.place.socket.exists()
    assert host.log() == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_an_answer_end_and_flushes(start, host, folder, number):
    channel, frames = begun(host, generate(folder, max_tokens=300))
    host.process.send_signal(number)
    frames += frames_of(channel)
    channel.close()
    assert frames[-1] == {"end": True}
    finished = events(frames)[-1]
    assert finished.usage.generated == 300
    assert host.ended() == 0
    assert not host.place.socket.exists()
    again = start()
    *_, last, _end = again.ask(generate(folder, max_tokens=300))
    usage = events([last])[0].usage
    assert (usage.prefilled, events([last])[0].ids) == (1, finished.ids)


def test_ctrl_c_in_a_terminal_is_not_for_it(host, folder):
    channel, frames = begun(host, generate(folder, max_tokens=100))
    host.process.send_signal(signal.SIGINT)
    frames += frames_of(channel)
    channel.close()
    assert frames[-1] == {"end": True}
    assert host.ps()["stage"] == "serving"


def test_a_second_signal_cancels_and_what_was_computed_is_kept(start, host, folder):
    text = "the capital of " * 40
    channel, frames = begun(host, generate(folder, text, max_tokens=1200))
    host.process.terminate()
    while host.ps()["stage"] == "serving":
        pass
    host.process.terminate()
    frames += frames_of(channel)
    channel.close()
    assert frames[-1]["error"]["kind"] == "HostStopped"
    assert host.ended() == 0
    *_, last, _end = start().ask(generate(folder, text, max_tokens=2))
    assert events([last])[0].usage.prefilled == 1


def test_one_that_was_killed_is_followed_by_the_next(start, host, folder):
    channel, _ = begun(host, generate(folder, max_tokens=1000))
    host.process.kill()
    with contextlib.suppress(ConnectionError):
        assert list(frames_of(channel))[-1:] != [{"end": True}]
    channel.close()
    host.ended()
    assert host.place.socket.exists()  # and nobody listens
    assert start().ask(generate(folder))[-1] == {"end": True}


def test_the_next_waits_for_the_one_before_it_and_there_are_never_two(start, host, folder):
    inode = host.place.socket.stat().st_ino
    second = start()
    assert host.ask(generate(folder))[-1] == {"end": True}
    assert second.process.poll() is None
    assert host.place.socket.stat().st_ino == inode
    assert host.ps()["pid"] == host.process.pid
    host.process.terminate()
    assert host.ended() == 0
    assert second.ask(generate(folder))[-1] == {"end": True}
    assert second.ps()["pid"] == second.process.pid


def test_a_place_that_takes_no_socket_is_one_line(place, start):
    place.socket.mkdir()
    (place.socket / "in the way").touch()
    host = start()
    assert host.ended() == 1
    (line,) = host.log().splitlines()
    assert str(place.socket) in line


def test_a_socket_is_its_owners_from_its_first_moment(place):
    before = os.umask(0)
    try:
        with listening(place):
            assert stat.S_IMODE(place.socket.stat().st_mode) == 0o600
    finally:
        os.umask(before)
    assert not place.socket.exists()


def test_a_socket_of_somebody_else_stays(place):
    with listening(place):
        place.socket.unlink()
        place.socket.touch()
    assert place.socket.exists()


def test_a_host_that_is_ended_before_it_serves_leaves_no_socket(place):
    """The signal comes right after it listens, before asyncio is imported."""
    code = (
        "import os, signal, llm_mlx_promptcache.host.main as main\n"
        "def serve(*_):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    signal.pause()\n"
        "main._serve = serve\n"
        "main.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert not place.socket.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_is_told_nothing(host):
    """Even where folder and socket are open, which they never are."""
    host.place.socket.chmod(0o777)
    link = Path("/tmp", f"mlx-cached-test-{os.getpid()}")  # where nobody else may look too
    code = (
        "import os, socket, sys\n"
        "sock = socket.socket(socket.AF_UNIX)\n"
        "sock.connect(sys.argv[1])\n"
        "os.write(1, b'connected ')\n"
        "try:\n"
        "    sock.sendall(bytes.fromhex(sys.argv[2]))\n"
        "    os.write(1, sock.recv(100))\n"
        "except ConnectionError:\n"
        "    pass\n"
    )
    frames = encode({"hello": bare_hello()}) + encode({"ask": "stop"})
    link.hardlink_to(host.place.socket)
    try:
        done = subprocess.run(
            ["/usr/bin/env", "python3", "-c", code, str(link), frames.hex()],
            user=65534,
            group=65534,
            extra_groups=[],
            cwd="/",
            capture_output=True,
        )
    finally:
        link.unlink()
    if done.returncode and not done.stdout:
        pytest.skip("nobody can't run this Python")
    assert done.stdout == b"connected "
    assert host.ps()["stage"] == "serving"


def test_two_hundred_connections_at_once(start, folder):
    """All are welcomed, and stay so while one is answered and then each is."""
    host = start(command=PATIENT)
    channels = [host.welcomed() for _ in range(200)]
    assert all("welcome" in channel.greeting for channel in channels)
    assert host.ask(generate(folder))[-1] == {"end": True}
    for number, channel in enumerate(channels):
        ask = generate(folder, f"{number % 7}", max_tokens=1) if number % 10 == 0 else {"ask": "ps"}
        channel.send(ask, LONG)
    for channel in channels:
        *_, last = frames_of(channel)
        assert last == {"end": True} or last["result"]["pid"] == host.process.pid
        channel.close()
    assert host.ps()["busy"] == 0


def test_two_hundred_that_come_at_one_moment(host):
    gate, found = threading.Barrier(50), []

    def come():
        gate.wait()
        for _ in range(4):
            found.append(host.ps()["pid"])

    threads = [threading.Thread(target=come) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert found == [host.process.pid] * 200


def test_it_leaks_no_descriptor(host, folder):
    assert host.ask(generate(folder))[-1] == {"end": True}
    pid = host.process.pid
    if not Path(f"/proc/{pid}/fd").exists():
        pytest.skip("this system does not list them")
    host.ps()
    before = descriptors(pid)
    for number in range(20):
        host.ask(generate(folder, str(number), max_tokens=1))
        with contextlib.closing(host.connected()) as sock:
            sock.sendall(b"garbage" * number)
    for _ in range(100):  # the last was just closed, and the writer opens files of its own
        left = descriptors(pid)
        if left <= before:
            break
        host.ps()
    assert left <= before


def test_no_text_of_any_prompt_is_in_its_log_nor_in_what_it_tells(host, folder):
    asks = [
        generate(folder, SECRET),
        generate(folder, SECRET, template_arguments={"a": SECRET}),
        generate(folder, SECRET, regex=f"({SECRET}"),
        generate(folder, SECRET, schema={"type": SECRET}),
        {**generate(folder, SECRET), "model": f"/{SECRET}"},
        {**generate(folder, SECRET), "keep": SECRET},
        {"ask": SECRET},
        {"ask": "generate", "model": str(folder), "request": {"is": SECRET, "of": {}}},
    ]
    for ask in asks:
        assert host.ask(ask)[-1].keys() & {"end", "error"}
        assert SECRET not in json.dumps(host.ps()).replace(f"/{SECRET}", "")
    channel = host.welcomed()
    channel.send(generate(folder, SECRET * 40, max_tokens=1000), LONG)
    channel.close()
    with contextlib.closing(host.connected()) as sock:
        sock.sendall(encode({"hello": SECRET}) + SECRET.encode())
    host.process.terminate()
    assert host.ended() == 0
    assert SECRET not in host.log()
    assert "heron" not in host.log()


def test_a_disk_that_is_full_is_told_and_every_answer_comes(start, folder):
    """No file of the host's may grow beyond 200 KB: writes fail as on a full disk."""
    host = start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)))
    told = []
    for number in range(3):
        frames = host.ask(generate(folder, f"{number} the capital of " * 90, max_tokens=300))
        assert frames[-1] == {"end": True}
        told += [frame["log"][2] for frame in frames if "log" in frame]
    host.process.terminate()
    assert host.ended() == 0
    assert any("written to the disk cache" in text for text in told), (told, host.log())


def test_what_no_thread_waited_for_leaves_its_kind_in_the_log(place):
    code = (
        "import threading, os\n"
        "from llm_mlx_promptcache.host import log\n"
        "log.take_over()\n"
        f"def work(): raise ValueError({SECRET!r})\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join()\n"
        f"print({SECRET!r}, file=__import__('sys').stderr)\n"
        f"raise KeyError({SECRET!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    thread, main = done.stderr.splitlines()
    assert "ValueError at <string>:4" in thread
    assert "KeyError at <string>:7" in main
    assert "heron" not in done.stderr


def test_who_said_nothing_when_the_host_ended_leaves_nothing_in_the_log(host):
    with host.connected():
        assert host.ps()["busy"] == 0  # by then the other one is accepted
        host.process.terminate()
        assert host.ended() == 0
    assert host.log() == ""


def test_a_log_that_grew_large_begins_anew(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"x" * (1 << 20) + b"x")
    code = "from llm_mlx_promptcache.host import log; log.write_line('two\\nlines')"
    with path.open("ab") as file:
        subprocess.run([sys.executable, "-c", code], stderr=file, check=True)
    (line,) = path.read_text().splitlines()
    assert line.endswith(" two lines")


def test_a_stopped_host_goes_on_when_it_may(host, folder):
    """SIGSTOP and SIGCONT: who waited is answered."""
    host.process.send_signal(signal.SIGSTOP)
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(os.fspath(host.place.socket))
    channel = Channel(sock)
    channel.send({"hello": bare_hello()}, LONG)
    with pytest.raises(TimeoutError):
        channel.receive(0)
    host.process.send_signal(signal.SIGCONT)
    assert "welcome" in channel.receive(LONG)
    channel.close()
