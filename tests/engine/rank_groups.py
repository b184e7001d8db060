"""Groups of ranks as processes on this machine: started, asked, hurt, and ended in any case."""

import json
import os
import queue
import signal
import socket
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import forks
from dark_lines import DarkLine

from llm_mlx_promptcache.engine.wire import from_json, to_json

SCRIPT = Path(__file__).parent / "rank_process.py"
SECONDS = 120  # that anything may take on a busy machine
SECRET = "0123456789abcdef"


class RankProcess:
    """One rank: its lines come in order, and each is waited for only so long."""

    def __init__(self, given, hostfile):
        environment = {**os.environ, "MLX_RANK": str(given["rank"]), "MLX_HOSTFILE": str(hostfile)}
        self.process = subprocess.Popen(
            [forks.python(), str(SCRIPT), json.dumps(given)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.errors = []
        self._lines = queue.SimpleQueue()
        for read in (self._out, self._err):
            threading.Thread(target=read, daemon=True).start()

    def _out(self):
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _err(self):
        self.errors.extend(self.process.stderr)

    def line(self, seconds=SECONDS):
        """The next thing that it says."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise AssertionError(f"a rank says nothing: {''.join(self.errors)}") from None
        assert line is not None, f"a rank is gone: {''.join(self.errors)[-3000:]}"
        return json.loads(line)

    def say(self, **command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def wait(self, seconds=SECONDS):
        """Its exit status."""
        return self.process.wait(seconds)

    def end(self):
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(30)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            with suppress(OSError):
                stream.close()


class RankGroup:
    """All ranks of a group; a context, behind which none is left.

    `through` says what of rank 1 goes through `line`, which can go dark: the "words" to it and
    from it, or what the "model" sends it.
    """

    def __init__(self, folder, disks, size=2, split="tensor", *, own=None, through="", **given):
        ports = free_ports(size + 1)
        self.line = DarkLine(ports[0] if through == "words" else ports[2]) if through else None
        self.ranks = []
        for rank in range(size):
            ring = [f"127.0.0.1:{port}" for port in ports[1:]]
            if through == "model" and rank == 0:
                ring[1] = f"127.0.0.1:{self.line.port}"
            hostfile = Path(disks) / f"hosts-{ports[0]}-{rank}.json"
            hostfile.write_text(json.dumps([[one] for one in ring]))
            disk = Path(disks) / str(rank)
            disk.mkdir(exist_ok=True)
            mine = {
                "rank": rank,
                "size": size,
                "split": split,
                "port": self.line.port if through == "words" and rank == 1 else ports[0],
                "folder": str(folder),
                "disk": str(disk),
                "secret": SECRET,
                "chunk": 16,
                **given,
                **(own or {}).get(rank, {}),
            }
            self.ranks.append(RankProcess(mine, hostfile))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for one in self.ranks:
            one.end()
        if self.line is not None:
            self.line.end()

    @property
    def head(self):
        return self.ranks[0]

    def ready(self):
        for one in self.ranks:
            told = one.line()
            assert told == {"ready": True}, told
        return self

    def forget(self):
        """Forget all on all ranks: bytes of memory and disks that were freed, and who has some."""
        self.head.say(do="forget")
        return self.head.line()["freed"]

    def ask(self, *requests, gone=None, forget=None):
        """All asked at once: each answer, or error; and what the ranks were told.

        With `forget` all is forgotten after so many turns.
        """
        asked = [to_json(one) for one in requests]
        self.head.say(do="ask", requests=asked, gone=gone, forget=forget)
        found = self.head.line()
        assert "answers" in found, found
        self.told = found["told"]
        return [from_json(one) if "is" in one else one for one in found["answers"]]

    def close(self):
        """End it in order: what each rank said at last."""
        self.head.process.stdin.close()
        last = [one.line() for one in self.ranks]
        assert [one.wait() for one in self.ranks] == [0] * len(self.ranks)
        assert all(one["left"] and one["check"] == [] for one in last), last
        return last


def free_ports(count):
    """Ports of this machine that nobody listens at now."""
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports
