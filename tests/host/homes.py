"""A home in which hosts are stand-ins, each started as a host is."""

import os
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path

from filelock import FileLock

from llm_mlx_promptcache.host.child import Program
from llm_mlx_promptcache.host.start import connect

STAND_IN = Path(__file__).with_name("stand_in_host.py")


class Home:
    """A place of its own, and whom it has seen started."""

    def __init__(self, place):
        self.place = place

    def connect(self, *kinds, waits=None):
        return connect(self.place, program=Program(command(*kinds)), waits=waits)

    def started(self):
        path = self.place.folder / "started"
        return [int(pid) for pid in path.read_text().split()] if path.exists() else []

    def ask(self, *kinds):
        with closing(self.connect(*kinds)) as channel:
            channel.send({"ask": "itself"}, 60)
            return channel.receive(60)["result"]


def command(*kinds):
    return [sys.executable, "-P", str(STAND_IN), *(kinds or ("current",))]


def children():
    """Processes that this one has begun and not waited for, ended or not."""
    if not Path("/proc/self/stat").exists():
        try:
            return {os.waitpid(-1, os.WNOHANG)[0]}
        except ChildProcessError:
            return set()
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            _, parent, *_ = stat.read_text().rpartition(")")[2].split()
            found |= {stat.parent.name} if int(parent) == os.getpid() else set()
    return found


def reapers():
    return [t for t in threading.enumerate() if t.name == "mlx-cached-host"]


def ended(place):
    """Wait until the host of a place has ended, by the lock that it holds as long as it lives."""
    with FileLock(place.life_lock).acquire(timeout=60):
        pass
